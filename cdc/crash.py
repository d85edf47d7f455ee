"""Crash points: named places where a test lets the process die, as if the machine had lost its power just there.

`CDC_CRASH_AT=name:n` in the environment arms one of them: at its n-th passing the process sends itself SIGKILL.
Without the variable a passing costs one comparison. The points stand between steps of the protocol. None stands in a
pure room, and none is passed once for each change. `docs/testing.md` says how the tests use them. No operator ever
sets the variable.
"""

import asyncio
import os
import signal
from collections.abc import Mapping
from typing import Final, Literal, NoReturn, get_args

import structlog

from cdc.errors import Invalid

log = structlog.get_logger()

VARIABLE: Final = "CDC_CRASH_AT"

CrashPoint = Literal[
    "server_examined",
    "bucket_probed",
    "archive_begun",
    "backfill_slot_created",
    "base_chunk_written",
    "snapshot_unwritten",
    "snapshot_written",
    "standing_by",
    "slot_held",
    "fence_unwritten",
    "fence_written",
    "transactions_queued",
    "segment_put_unsent",
    "segment_put_in_flight",
    "segment_put_answered",
    "part_written",
    "coverage_written",
    "status_sent",
    "script_unsent",
    "script_answered",
    "cache_part_sent",
    "warm_up_begun",
    "warm_up_filling",
    "catch_up_applied",
    "draining",
    "gap_unwritten",
    "gap_written",
    "repair_fenced",
    "repair_slot_dropped",
    "fork_unwritten",
    "fork_written",
    "restore_chunk_committed",
    "restore_transactions_committed",
]

STORIES: Final[Mapping[CrashPoint, str]] = {
    "server_examined": "Server and publication are looked at; nothing was changed.",
    "bucket_probed": "The bucket has answered one of the two PUTs that prove its conditional writes.",
    "archive_begun": "The first fence of an archive is there, and no slot.",
    "backfill_slot_created": "A slot with its snapshot was created, and none of the snapshot's rows are archived.",
    "base_chunk_written": "A base chunk of a backfill is there, which no record names yet.",
    "snapshot_unwritten": "All base chunks are there, and the record that commits them is not.",
    "snapshot_written": "The snapshot record is in the log, and nothing was streamed yet.",
    "standing_by": "Another service holds the slot, and we wait for it.",
    "slot_held": "START_REPLICATION was granted, and the archive is not fenced.",
    "fence_unwritten": "Tail, invariant and tables are checked with the slot held; the fence is about to be PUT.",
    "fence_written": "Our fence is the tail, and nothing was received yet.",
    "transactions_queued": "Transactions are received and wait in the archive's queue.",
    "segment_put_unsent": "The bytes of a segment are frozen, and its PUT is not sent.",
    "segment_put_in_flight": "A moment after a PUT began: sent, and if the bucket is slow, not answered.",
    "segment_put_answered": "The bucket has acknowledged a segment, and nobody else knows.",
    "part_written": "A part of a large transaction is there, and not its last.",
    "coverage_written": "A coverage segment is there, and Postgres was not told.",
    "status_sent": "A status update went to Postgres, which may not have saved the slot.",
    "script_unsent": "A script call to the cache is packed, and not sent.",
    "script_answered": "Redis has applied a script call, and we have not noted it.",
    "cache_part_sent": "A piece of a large transaction went to the cache, and more pieces follow.",
    "warm_up_begun": "The cache's checkpoint says that it is being filled, and its keys are still there.",
    "warm_up_filling": "Some rows of a warm-up are in the cache.",
    "catch_up_applied": "Transactions of the archive are in the cache, which does not follow the stream yet.",
    "draining": "SIGTERM came, and what was received is still on its way into the archive.",
    "gap_unwritten": "Changes are found to be lost, we are the writer, and the gap is not recorded.",
    "gap_written": "The gap is recorded, and its repair has not begun.",
    "repair_fenced": "The repair of a gap has fenced the archive, and the useless slot is still there.",
    "repair_slot_dropped": "The useless slot is gone, and there is no new one.",
    "fork_unwritten": "A new timeline was found, and the fork is not recorded.",
    "fork_written": "The fork is recorded, and nothing was archived in the new epoch.",
    "restore_chunk_committed": "A restore has committed a chunk of the snapshot's rows.",
    "restore_transactions_committed": "A restore has committed some transactions.",
}

# Long enough for a request to leave, short enough for a slow bucket not to have answered.
IN_FLIGHT_S: Final = 0.2


class _Armed:
    """The one point that is armed, and how many passings are left until the process dies there."""

    def __init__(self, name: str, passings: int) -> None:
        self.name = name
        self._left = self._passings = passings

    def is_due(self, name: str) -> bool:
        if name != self.name:
            return False
        self._left -= 1
        return self._left == 0

    def crash(self) -> NoReturn:
        log.error("crashing_on_purpose", point=self.name, passing=self._passings)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("SIGKILL cannot be survived")


_armed: _Armed | None = None


def crash_point(name: CrashPoint) -> None:
    """Kill this process if the point is armed and this is the passing that counts."""
    if _armed is not None and _armed.is_due(name):
        _armed.crash()


def crash_soon(name: CrashPoint) -> None:
    """The same, `IN_FLIGHT_S` from now: while the request that the caller is about to await is under way."""
    if _armed is not None and _armed.is_due(name):
        asyncio.get_running_loop().call_later(IN_FLIGHT_S, _armed.crash)


def arm(environ: Mapping[str, str] = os.environ) -> None:
    """Arm the point that the environment names, or none. Raises Invalid if it names no point."""
    global _armed
    text = environ.get(VARIABLE, "")
    name, _, passings = text.partition(":")
    if not text:
        _armed = None
        return
    if name not in get_args(CrashPoint) or not (passings or "1").isdecimal() or passings == "0":
        raise Invalid(
            f"{VARIABLE}={text} names no crash point",
            detail="The points are: " + ", ".join(get_args(CrashPoint)),
            hint=f"unset {VARIABLE}   # only tests set it; NAME:N, where N counts passings from 1",
        )
    _armed = _Armed(name, int(passings or 1))
