"""Answers `/status.json`: the service at this moment, as plain values. Unknown is null.

Every answer has all fields, in every phase of the service. docs/http.md explains each of them.
"""

import time
from typing import Any

from cdc import __version__, log, metrics
from cdc.archive.bucket.cost import PUT_USD as PUT_USD
from cdc.config import Settings
from cdc.health.verdict import Health
from cdc.health.vitals import CacheState, Interruption, SourceFacts, Vitals
from cdc.lsn import format_lsn
from cdc.monitor.monitor import Monitor
from cdc.web.history import INTERVAL_S, History
from cdc.words import iso


class Status:
    """Assembles the facts of one service at each request."""

    def __init__(self, settings: Settings, vitals: Vitals, history: History, monitor: Monitor) -> None:
        self._settings = settings
        self._vitals = vitals
        self._history = history
        self._monitor = monitor

    def facts(self, verdict: Health) -> dict[str, Any]:
        """Return all facts as one JSON object. Times are ISO 8601 in UTC, positions LSNs, sizes bytes."""
        vitals, monitor = self._vitals, self._monitor
        return {
            "version": __version__,
            "now": iso(time.time()),
            "started_at": iso(vitals.started_at),
            "ready": verdict.ready,
            "reasons": [reason.told for reason in verdict.reasons],
            "warnings": [warning.told for warning in verdict.warnings],
            "phase": {"name": vitals.phase.value, "since": iso(vitals.since)},
            "source": _source(vitals.upstream),
            "mishap": _interruption(vitals.interruption),
            "positions": {name: None if lsn is None else format_lsn(lsn) for name, lsn in self.lsns().items()},
            "lag": self.lag(),
            "slots": monitor.slots,
            "postgres": monitor.postgres,
            "archive": self._archive(),
            "cache": {"state": vitals.cache_state, "lsn": _lsn(vitals.positions.cached)},
            "history": {"interval_s": INTERVAL_S, **self._history.columns(), "limit_bytes": monitor.limit_bytes},
            "events": list(log.recent),
        }

    def lsns(self) -> dict[str, int | None]:
        """The positions that a change passes, as integers; None while one is unknown."""
        found = self._vitals.positions
        # The slot watch looks every few seconds; the stream may have told a later position of the server since.
        server = max(found.server, found.received) if found.server else None
        return {
            "server": server,
            "received": found.received or None,
            "archived": found.archived or None,
            "acknowledged": found.acknowledged or None,
            "cached": found.cached or None,
        }

    def lag(self) -> dict[str, float | None]:
        """The distance (bytes, seconds) of each position behind what was received, and of that behind the server."""
        lsns, backlog = self.lsns(), self._vitals.backlog
        backlog.cached(self._vitals.positions.cached)
        live = self._vitals.cache_state is CacheState.LIVE
        return {
            "received_bytes": _behind(lsns["received"], lsns["server"]),
            "archive_bytes": _behind(lsns["archived"], lsns["received"]),
            "archive_s": round(backlog.age_s(), 3),
            "acknowledged_bytes": _behind(lsns["acknowledged"], lsns["received"]),
            "cache_bytes": _behind(lsns["cached"], lsns["received"]),
            "cache_s": round(backlog.cache_age_s(), 3) if live else None,
        }

    @property
    def usd_per_month(self) -> float | None:
        """The dollars a month for the bucket's PUTs at the rate of the last half hour; None in the first minute."""
        puts_per_month = self._history.puts_per_month
        return None if puts_per_month is None else puts_per_month * PUT_USD

    def _archive(self) -> dict[str, Any]:
        vitals, counts, cost = self._vitals, self._vitals.archive, self.usd_per_month
        return {
            "url": self._settings.archive.url,
            "seq": counts.seq,
            "lag_s": round(vitals.backlog.age_s(), 3),
            "segments": counts.segments,
            "bytes": counts.nbytes,
            "puts": counts.puts,
            "last_put_at": None if vitals.archived_at is None else iso(vitals.archived_at),
            "open_gap": counts.open_gap,
            "gaps": counts.gaps,
            "forks": counts.forks,
            "cost_per_month_usd": None if cost is None else round(cost, 2),
            "verified": _proof("verify"),
            "drill": _proof("drill"),
        }


def _behind(lsn: int | None, reference: int | None) -> int | None:
    return None if lsn is None or reference is None else max(0, reference - lsn)


def _proof(name: str) -> dict[str, Any] | None:
    """The result of the last verification or drill, perhaps of another process; None if there was none."""
    ok, at = metrics.proof_ok.of(name), metrics.proof_at_s.of(name)
    if ok is None and at is None:
        return None
    found: dict[str, Any] = {"at": None if at is None else iso(at), "ok": bool(ok)}
    return found if name == "drill" else {"lsn": _lsn(int(metrics.proof_lsn.of(name) or 0)), **found}


def _lsn(lsn: int) -> str | None:
    return format_lsn(lsn) if lsn else None


def _source(upstream: SourceFacts | None) -> dict[str, Any] | None:
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


def _interruption(interruption: Interruption | None) -> dict[str, Any] | None:
    if interruption is None:
        return None
    return {
        "kind": interruption.kind,
        "message": interruption.message,
        "hint": interruption.hint,
        "at": iso(interruption.at),
    }
