"""What the slot watch found, as the status page, its history and the verdict need it; unknown until its first look."""

from collections.abc import Iterable
from typing import Any

from cdc.health.verdict import Reason
from cdc.monitor.monitor import Monitor
from cdc.monitor.report import Notice, finite, postgres_facts, slot_facts


class Watched:
    """Reads a monitor's last report."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    @property
    def reasons(self) -> list[Reason]:
        """Why the service is not ready, as far as slots can tell."""
        return _as_reasons(self._monitor.reasons)

    @property
    def warnings(self) -> list[Reason]:
        """What somebody should look at, and is no reason already."""
        reasons = self._monitor.reasons
        return _as_reasons(notice for notice in self._monitor.warnings if notice not in reasons)

    @property
    def slots(self) -> list[dict[str, Any]]:
        """Every slot of the server, as `cdc slots --json` prints it."""
        found = self._monitor.latest
        return [] if found is None else [slot_facts(slot, found) for slot in found.observation.slots]

    @property
    def postgres(self) -> dict[str, Any]:
        """The server, as `cdc slots --json` prints it."""
        found = self._monitor.latest
        if found is None:
            return {"wal_bytes_per_s": None, "oldest_transaction": None, "disk": None}
        return postgres_facts(found)

    @property
    def server_lsn(self) -> int | None:
        """Where the server wrote WAL when it was last looked at."""
        found = self._monitor.latest
        return None if found is None else found.observation.wal_lsn

    @property
    def retained_bytes(self) -> int | None:
        """WAL that our slot keeps; None where it is unknown, or infinite because the slot is lost."""
        found = self._monitor.latest
        if found is None:
            return None
        ours = (slot for slot in found.observation.slots if slot.slot.name == found.ours)
        return next((finite(slot.retained_bytes(found.observation.wal_lsn)) for slot in ours), None)

    @property
    def limit_bytes(self) -> int | None:
        """`max_slot_wal_keep_size`; None if it is unlimited."""
        found = self._monitor.latest
        return None if found is None else finite(found.observation.keep_bytes)


def _as_reasons(notices: Iterable[Notice]) -> list[Reason]:
    return [Reason(notice.subject, notice.message, notice.hint) for notice in notices]
