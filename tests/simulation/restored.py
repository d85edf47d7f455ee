"""Checks P4 at the end of a world: a restore gives what the tables were."""

from cdc.archive.bucket.bucket import Bucket
from cdc.archive.reader.history import RestorePoint, read_history
from cdc.change import RowChange, Truncate
from cdc.row import ABSENT, Row
from tests.simulation.history import History, State, wire_row
from tests.support.cache_model import Turn


async def difference(bucket: Bucket, truth: History, until: RestorePoint) -> str:
    """Describe how the restored table differs from its state after the last commit up to the moment; '' if it does not.

    Raises Diverged or Invalid for a moment that cannot be restored.
    """
    restored: dict[bytes | None, Row] = {}
    history = await read_history(bucket, until)
    async for _, rows in history.chunks(bucket):
        restored |= {_id(row.new): row.new for row in rows if row.new is not None}
    async for _, transaction in history.transactions(bucket, history.first_ordinal):
        for change in transaction.changes:
            if isinstance(change, Truncate):
                restored.clear()
            elif isinstance(change, RowChange):
                _apply(restored, change)
    then = {_id(row): row for turn in _state_at(truth, until).values() for row in [_row(turn)]}
    wrong = [key for key in {**then, **restored} if then.get(key) != restored.get(key)]
    return f"restored to {until}, {len(wrong)} of {len(then)} rows are not as they were" if wrong else ""


def _apply(rows: dict[bytes | None, Row], change: RowChange) -> None:
    before = rows.pop(_id(change.old), None) if change.old is not None else None
    if change.new is not None:
        kept = before or change.new
        rows[_id(change.new)] = [old if new is ABSENT else new for new, old in zip(change.new, kept, strict=True)]


def _row(turn: Turn) -> Row:
    return [value if isinstance(value, bytes) else None for value in wire_row(turn)]


def _id(row: Row) -> bytes | None:
    return row[0] if isinstance(row[0], bytes) else None


def _state_at(truth: History, until: RestorePoint) -> State:
    if until.lsn is None:
        return truth.states[-1]
    return truth.states[sum(one.commit_lsn <= until.lsn for one in truth.transactions)]
