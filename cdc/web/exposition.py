"""Answers `/metrics`: brings the gauges of the service's own state up to date, and prints the registry.

Counters are written where the events happen. Positions, phase, states, verdict and lags are taken from the vitals at
each request. A number that is not known is NaN, which no comparison in an alert takes for 0.
"""

import math
import platform
import time
from collections.abc import Iterable

from prometheus_client import Gauge, generate_latest

from cdc import __version__, metrics
from cdc.errors import Unavailable
from cdc.health.verdict import Health
from cdc.health.vitals import CacheState, Phase, Vitals
from cdc.pgoutput import messages
from cdc.web.status import Status

# The rooms that decide what to do about an error.
ROOMS = ("service", "archive", "cache", "monitor", "barrier")


class Exposition:
    """Prints the metrics of one service as text."""

    def __init__(self, vitals: Vitals, status: Status) -> None:
        self._vitals = vitals
        self._status = status
        metrics.build.info(
            {
                "version": __version__,
                "python": platform.python_version(),
                "compiled": "no" if messages.__file__.endswith(".py") else "yes",
            }
        )
        # These counters exist before they count: increase() in a rule does not see how a series began.
        for room in ROOMS:
            metrics.errors.labels(room, Unavailable.__name__)
        metrics.retries.labels("archive")

    def text(self, verdict: Health) -> bytes:
        """Print the metrics as they are now, in Prometheus's text format."""
        vitals, status = self._vitals, self._status
        metrics.ready.set(verdict.ready)
        metrics.alive.set(verdict.alive)
        _show_state(metrics.phase, Phase, vitals.phase)
        metrics.phase_seconds.set(max(0.0, time.time() - vitals.since))
        if vitals.cache_state is not None:
            _show_state(metrics.cache_state, CacheState, vitals.cache_state)
        self._show_positions()
        self._show_lags(status.lag())
        metrics.rpo_s.set(_known(vitals.recovery.age_s()))
        metrics.bucket_cost.set(_known(status.usd_per_month))
        return generate_latest(metrics.REGISTRY)

    def _show_positions(self) -> None:
        positions = self._vitals.positions
        metrics.server_lsn.set(_known(self._status.lsns()["server"]))
        metrics.received_lsn.set(positions.received)
        metrics.acknowledged_lsn.set(positions.acknowledged)
        for sink, lsn in (("archive", positions.archived), ("cache", positions.cached)):
            if lsn:
                metrics.durable_lsn.labels(sink).set(lsn)

    def _show_lags(self, lags: dict[str, float | None]) -> None:
        cached = self._vitals.cache_state is not None
        for position in ("received", "archive", "acknowledged", *(("cache",) if cached else ())):
            metrics.lag_bytes.labels(position).set(_known(lags[f"{position}_bytes"]))
        for sink in ("archive", *(("cache",) if cached else ())):
            metrics.lag_seconds.labels(sink).set(_known(lags[f"{sink}_s"]))


def _show_state(gauge: Gauge, states: Iterable[str], state: str) -> None:
    for possible in states:
        gauge.labels(possible).set(possible == state)


def _known(value: float | None) -> float:
    return math.nan if value is None else value
