"""`cdc restore`: the archive's tables at a moment, in a database.

`whole` brings whole tables into an empty one, `excerpt` the rows of one conversation into a schema beside the live
tables, `selection` says which rows those are, and `meter` shows how far it is.
"""

from cdc.restore.meter import Meter, watched
from cdc.restore.whole import Outcome, read_until, restore

__all__ = ["Meter", "Outcome", "read_until", "restore", "watched"]
