"""How much to measure, from the environment, so that a slow machine or a hurried person can ask for less.

The defaults take five to eight minutes on two cores. Every size is printed into docs/benchmarks.md beside its figures.
"""

import os
from dataclasses import dataclass

_PREFIX = "CDC_BENCH_"


@dataclass(frozen=True, slots=True)
class Sizes:
    """`changes` are rows of one workload, `decoder_changes` what the slow contender reads of the same WAL.

    `restore_rows` come back from a snapshot, `restore_changes` from the log; 0 leaves them out.
    """

    changes: int = 500_000
    decoder_changes: int = 15_000
    repetitions: int = 3
    latency_s: int = 20
    latency_rate: int = 500
    transaction_rows: int = 1_000_000
    idle_s: int = 180
    restore_rows: int = 1_000_000
    restore_changes: int = 300_000
    compiled: int = 1


def read_sizes(environment: dict[str, str] | None = None) -> Sizes:
    """Sizes as `CDC_BENCH_CHANGES=50000` and so on; the defaults for what is not set."""
    given = dict(os.environ) if environment is None else environment
    known = Sizes.__dataclass_fields__
    chosen = {name: int(given[_PREFIX + name.upper()]) for name in known if _PREFIX + name.upper() in given}
    return Sizes(**chosen)
