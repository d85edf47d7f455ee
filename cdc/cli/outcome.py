"""Prints what a restore did, or would do, for `cdc restore`."""

from typing import Any

from cdc.lsn import format_lsn
from cdc.restore import Outcome
from cdc.words import duration


def facts(outcome: Outcome) -> dict[str, Any]:
    """Give the outcome as plain values, for `--json`."""
    history = outcome.history
    return {
        "dry_run": outcome.dry_run,
        "archive": history.archive,
        "until": str(history.until),
        "snapshot_lsn": format_lsn(history.base.consistent_lsn),
        "snapshot_rows": history.base_rows,
        "changes_at_most": history.changes,
        "covered_upto": format_lsn(history.covered_upto),
        "tables": outcome.tables,
        "created": outcome.created,
        "resumed": outcome.resumed,
        "triggers_fired": outcome.triggers_fired,
        "sequences": outcome.sequences,
        "rows_copied": outcome.rows,
        "transactions": outcome.transactions,
        "changes": outcome.changes,
        "next_ordinal": outcome.next_ordinal,
        "last_commit_lsn": format_lsn(outcome.last_commit_lsn),
        "interruptions": [str(interruption) for interruption in history.skipped],
        "forks": [str(fork) for fork in history.forks],
        "seconds": round(outcome.seconds, 3),
    }


def lines(outcome: Outcome) -> list[str]:
    """Describe the outcome for people."""
    history = outcome.history
    verb = "would begin" if outcome.dry_run else "began"
    said = [f"{verb} with the snapshot at {format_lsn(history.base.consistent_lsn)}, {history.base_rows} rows"]
    said += history.remarks()
    said += [f"table {name} is created from its archived shape: no defaults, indexes, constraints"
             for name in outcome.created]  # fmt: skip
    if outcome.dry_run:
        return [*said, f"up to {history.changes} changes would follow, until {history.until}"]
    if outcome.resumed:
        said.append("went on where an earlier run had stopped")
    if outcome.triggers_fired:
        said.append("triggers fired and foreign keys were checked: the role may not set session_replication_role")
    rate = (outcome.rows + outcome.changes) / max(outcome.seconds, 0.001)
    return [
        *said,
        f"copied {outcome.rows} rows, then {outcome.changes} changes of {outcome.transactions} transactions",
        f"sequences set: {', '.join(outcome.sequences) or 'none'}",
        f"in {duration(outcome.seconds)}, {rate:.0f} rows/s; the next transaction has ordinal {outcome.next_ordinal}",
    ]
