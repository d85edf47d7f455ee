"""What `/status.json` says: the service at this moment, as plain values; unknown is null."""

import time
from datetime import UTC, datetime
from typing import Any

from cdc import __version__, log, metrics
from cdc.config import Settings
from cdc.health import Health
from cdc.lsn import format_lsn
from cdc.vitals import Mishap, Upstream, Vitals


class Status:
    """Assembles the facts when asked."""

    def __init__(self, settings: Settings, vitals: Vitals) -> None:
        self._settings = settings
        self._vitals = vitals

    def facts(self, verdict: Health) -> dict[str, Any]:
        """One JSON object. Times are ISO 8601 in UTC, positions LSNs, sizes bytes."""
        vitals = self._vitals
        return {
            "version": __version__,
            "now": _iso(time.time()),
            "started_at": _iso(vitals.started_at),
            "ready": verdict.ready,
            "reasons": [{"subject": r.subject, "message": r.message, "hint": r.hint} for r in verdict.reasons],
            "phase": {"name": vitals.phase.value, "since": _iso(vitals.since)},
            "source": _source(vitals.upstream),
            "mishap": _mishap(vitals.mishap),
            "positions": {
                "received": _position("cdc_received_lsn"),
                "archived": _position("cdc_durable_lsn", sink="archive"),
                "acknowledged": _position("cdc_acknowledged_lsn"),
                "cached": _position("cdc_durable_lsn", sink="cache"),
            },
            "archive": {"url": self._settings.archive.url, "lag_s": round(vitals.backlog.age_s(), 3)},
            "cache": {"state": vitals.cache_state},
            "events": list(log.recent),
        }


def _position(name: str, **labels: str) -> str | None:
    value = metrics.REGISTRY.get_sample_value(name, labels)
    return format_lsn(int(value)) if value else None


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _source(upstream: Upstream | None) -> dict[str, Any] | None:
    if upstream is None:
        return None
    return {
        "system_identifier": upstream.system_identifier,
        "timeline": upstream.timeline,
        "database": upstream.database,
        "server_version": upstream.server_version,
        "slot": upstream.slot,
        "publication": upstream.publication,
    }


def _mishap(mishap: Mishap | None) -> dict[str, Any] | None:
    if mishap is None:
        return None
    return {"kind": mishap.kind, "message": mishap.message, "hint": mishap.hint, "at": _iso(mishap.at)}
