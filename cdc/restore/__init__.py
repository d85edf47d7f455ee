"""`cdc restore`: the archive's tables at a moment, in a database.

`whole` brings whole tables into an empty database. `excerpt` brings the rows of one conversation into a schema beside
the live tables, and `selection` says which rows those are. `meter` shows the progress.
"""

from cdc.restore.meter import Meter, watched
from cdc.restore.whole import Outcome, read_until, restore

__all__ = ["Meter", "Outcome", "read_until", "restore", "watched"]
