"""Every kind of fault there is, by name."""

from tests.faults.kinds import bucket, cache, machine, network, postgres, service
from tests.faults.kinds.kind import KINDS, Kind

__all__ = ["KINDS", "Kind", "bucket", "cache", "machine", "network", "postgres", "service"]
