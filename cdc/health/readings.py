"""The registry's values as numbers: what the status page, its history and the heartbeat read.

A metric that does not exist, or was never set, is None: a number that nobody measured is not 0.
"""

from collections.abc import Mapping

from cdc import metrics

_Labels = tuple[tuple[str, str], ...]

LATENCY = "cdc_commit_to_durable_seconds"


class Readings:
    """All values of the registry at one moment."""

    def __init__(self, samples: Mapping[tuple[str, _Labels], float]) -> None:
        self._samples = samples

    @classmethod
    def take(cls) -> "Readings":
        return cls(
            {
                (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                for metric in metrics.REGISTRY.collect()
                for sample in metric.samples
            }
        )

    def value(self, name: str, **labels: str) -> float | None:
        """One sample; None if there is none with exactly these labels."""
        return self._samples.get((name, tuple(sorted(labels.items()))))

    def total(self, name: str) -> float:
        """The sum over all labels; 0 if there is nothing."""
        return sum(value for (sample, _), value in self._samples.items() if sample == name)

    def lsn(self, name: str, **labels: str) -> int | None:
        """A position; None while it is unknown."""
        return int(self.value(name, **labels) or 0) or None

    def buckets(self, name: str, **labels: str) -> dict[float, float]:
        """A histogram: how many were at most so much, cumulative, by bound."""
        found = {}
        for (sample, pairs), value in self._samples.items():
            given = dict(pairs)
            bound = given.pop("le", None)
            if sample == f"{name}_bucket" and bound is not None and given == labels:
                found[float(bound)] = value
        return found

    # What is asked for in several places.

    @property
    def archived_lsn(self) -> int | None:
        return self.lsn("cdc_durable_lsn", sink="archive")

    @property
    def cached_lsn(self) -> int | None:
        return self.lsn("cdc_durable_lsn", sink="cache")

    @property
    def received_lsn(self) -> int | None:
        return self.lsn("cdc_received_lsn")
