"""The checkpoint says how far the cache is: the hash `cdc:meta` in Redis, which moves in the same call as the data.

It holds `lsn` (complete up to here; absent while a warm-up runs), `epoch`, `generation` (names this filling of the
cache and its projections), `updated_at`, and `part` (`commit_lsn:seq`, the first change that is not applied yet) while
a large transaction is half applied. A warm-up or a TRUNCATE makes many calls at one position. Each appends its own
step, writer and number to `part` (`commit_lsn:seq:step-writer.call`).
"""

from typing import Final, NamedTuple

from cdc.lsn import parse_lsn
from cdc.position import Epoch, Position

META_KEY: Final = b"cdc:meta"
FIELDS: Final = (b"lsn", b"epoch", b"generation", b"part")


class Checkpoint(NamedTuple):
    """The fields of `cdc:meta` as they stand in Redis; an absent field is empty."""

    lsn: bytes = b""
    epoch: bytes = b""
    generation: bytes = b""
    part: bytes = b""

    def position(self, epoch: Epoch) -> Position:
        lsn = parse_lsn(self.lsn.decode())
        if not self.part:
            return Position(epoch, lsn)
        commit_lsn, seq = self.part.decode().split(":")[:2]
        return Position(epoch, lsn, parse_lsn(commit_lsn), int(seq))

    def stepped(self, signature: str) -> "Checkpoint":
        """A checkpoint at the same position that no other call leaves. `signature` names the call.

        Every call gets a unique step. Otherwise two cases look alike: Redis lost the previous call in a failover, or
        another writer made as many calls, through other keys.
        """
        commit_lsn, seq, step = (*self.part.decode().split(":"), "0")[:3] if self.part else ("0/0", "0", "0")
        number = int(step.partition("-")[0]) + 1
        return self._replace(part=f"{commit_lsn}:{seq}:{number}-{signature}".encode())

    def describe(self) -> str:
        text = " ".join(f"{name.decode()}={value.decode(errors='replace')}" for name, value in
                        zip(FIELDS, self, strict=True) if value)  # fmt: skip
        return text or "no checkpoint"
