"""Makes the bytes of an object: encodes lines, gathers them into frames, and freezes them with their header.

Encoding happens in slices with a pause after each, and compression of anything large in a thread. So the loop that we
share with the cache is never blocked for more than about a millisecond.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, TypeVar

from cdc.archive.format.encryption import Recipients
from cdc.archive.format.header import Header
from cdc.archive.format.lines import Encoder
from cdc.archive.format.segment import FRAME_BYTES, compress_frame, compress_header
from cdc.change import DELETE, Change, Relation, RowChange, Transaction
from cdc.row import Row

_Result = TypeVar("_Result")

# About a millisecond of encoding; a pause after each lets other tasks run.
_SLICE_ROWS = 128
_SLICE_BYTES = 128 * 1024

# Compressing or hashing more than this takes longer than handing it to a thread.
_THREAD_BYTES = 32 * 1024

# A chunk of a snapshot holds about this much text.
_CHUNK_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Frozen:
    """The final bytes of an object, their SHA-256 in hex, and the header that they begin with."""

    header: Header
    data: bytes
    sha256: str


@dataclass(slots=True)
class Body:
    """Gathers an object's lines in compressed frames, which are encrypted in the end if there are `recipients`."""

    level: int
    recipients: Recipients | None = None
    encoder: Encoder = field(default_factory=Encoder)
    frames: list[bytes] = field(default_factory=list)
    nbytes: int = 0
    _raw: list[bytes] = field(default_factory=list)
    _raw_bytes: int = 0

    async def add(self, first_ordinal: int, transactions: Sequence[Transaction]) -> None:
        """Encode the lines of some transactions. Their ordinals count up from `first_ordinal`."""
        at = 0
        while at < len(transactions):
            lines, then = self.encoder.encode_slice(first_ordinal, transactions, at, _SLICE_ROWS, _SLICE_BYTES)
            await self._gather(lines)
            if then == at:
                await self.add_changes(first_ordinal + at, transactions[at])
                then += 1
            at = then

    async def add_changes(self, ordinal: int | None, transaction: Transaction) -> None:
        """Encode the lines of one transaction, of any number."""
        for at in range(0, len(transaction.changes), _SLICE_ROWS):
            changes = transaction.changes[at : at + _SLICE_ROWS]
            await self._gather(self.encoder.encode(ordinal, transaction, changes))

    async def add_rows(self, op: str, relation: Relation, rows: Sequence[Row], lsn: int) -> None:
        """Encode the rows of a snapshot at `lsn`: rows that are there (READ), or keys of deleted rows (DELETE)."""
        first = self.encoder.lines
        new_and_old = [(None, row) if op == DELETE else (row, None) for row in rows]
        changes: list[Change] = [
            RowChange(op, first + number, relation, new, old) for number, (new, old) in enumerate(new_and_old)
        ]
        await self.add_changes(None, Transaction(0, lsn, time.time_ns() // 1000, changes))

    @property
    def empty(self) -> bool:
        return self.encoder.lines == 0

    @property
    def full(self) -> bool:
        """True if this holds as much as a chunk of a snapshot should."""
        return self.nbytes + self._raw_bytes >= _CHUNK_BYTES

    async def freeze(self, header: Header) -> Frozen:
        """Complete the header with the facts of the lines, and make the object's bytes."""
        await self._flush()
        if not self.empty:
            header = self._describe(header)
        large = self.nbytes > _THREAD_BYTES or (self.recipients is not None and bool(self.frames))
        return await _off_loop(large, _freeze, header, self.frames, self.level, self.recipients)

    async def _gather(self, lines: bytes) -> None:
        """Keep the lines of a slice, and pause, so that other tasks run."""
        if not lines:
            return
        self._raw.append(lines)
        self._raw_bytes += len(lines)
        await asyncio.sleep(0)
        if self._raw_bytes >= FRAME_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        """Compress the gathered lines into a frame."""
        if not self._raw:
            return
        raw, self._raw = self._raw, []
        self.nbytes += self._raw_bytes
        large, self._raw_bytes = self._raw_bytes > _THREAD_BYTES, 0
        self.frames.append(await _off_loop(large, _compress, raw, self.level))

    def _describe(self, header: Header) -> Header:
        """The header, completed with the facts of the lines."""
        return replace(
            header,
            changes=self.encoder.lines,
            relations=dict(self.encoder.relations),
            reshaped=tuple(self.encoder.reshaped),
            body_bytes=self.nbytes,
        )


def _compress(raw: list[bytes], level: int) -> bytes:
    return compress_frame(b"".join(raw), level)


async def _off_loop(large: bool, work: Callable[..., _Result], *args: Any) -> _Result:
    return await asyncio.to_thread(work, *args) if large else work(*args)


def _freeze(header: Header, frames: list[bytes], level: int, recipients: Recipients | None) -> Frozen:
    if recipients is not None and frames:
        header, frames = recipients.seal(header, frames)
    data = b"".join([compress_header(header, level), *frames])
    return Frozen(header, data, sha256(data).hexdigest())
