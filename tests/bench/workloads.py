"""The WAL that all contenders read: two workloads, written by the server itself in loops that commit.

`small`   a table of three columns, one to three rows a transaction, mostly inserts, some updates
`turns`   chat rows of sql/, three of them a transaction, with what an application gives and defaults for the rest

The last transaction is a marker: whoever has seen its commit has seen everything.
"""

from dataclasses import dataclass
from typing import Any

import psycopg

from cdc.lsn import parse_lsn

_SMALL_TABLE = """
CREATE TABLE small (id bigint PRIMARY KEY, amount integer NOT NULL, label text NOT NULL);
ALTER PUBLICATION cdc ADD TABLE small;
GRANT SELECT ON small TO PUBLIC
"""

# One, two, three rows a transaction in turn; every third transaction updates the row that the one before it wrote.
_SMALL_LOAD = """
DO $$
DECLARE
  written bigint := 0;
  turn bigint := 0;
BEGIN
  WHILE written < {changes} LOOP
    turn := turn + 1;
    FOR row IN 1..least(1 + turn % 3, {changes} - written) LOOP
      written := written + 1;
      IF turn % 3 = 0 THEN
        UPDATE small SET amount = amount + 1 WHERE id = written - row;
      ELSE
        INSERT INTO small VALUES (written, turn % 1000, 'label of row ' || written);
      END IF;
    END LOOP;
    COMMIT;
  END LOOP;
END $$
"""

_TURNS_LOAD = """
DO $$
DECLARE
  written bigint := 0;
BEGIN
  WHILE written < {changes} LOOP
    INSERT INTO turns (domain, channel, session_hash, role, content)
    SELECT 'support', 'web', 'session-' || (written / 3) % 20000, (ARRAY['user', 'assistant', 'tool'])[1 + n % 3],
           'turn ' || written + n || ' says ' || repeat('some words of a chat, ', 2 + n::int)
    FROM generate_series(0, least(2, {changes} - written - 1)) AS n;
    written := written + 3;
    COMMIT;
  END LOOP;
END $$
"""

_SMALL_MARKER = "INSERT INTO small VALUES (0, 0, 'the end')"
_TURNS_MARKER = (
    "INSERT INTO turns (domain, channel, session_hash, role, content) VALUES ('support', 'web', 'end', 'user', 'end')"
)


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    table: str
    load: str
    marker: str
    prepare: str = ""

    def write(self, connection: psycopg.Connection[Any], changes: int) -> "Written":
        """Write exactly `changes` row changes, the marker included."""
        connection.execute("SET synchronous_commit = off")
        connection.execute(self.load.format(changes=changes - 1))
        before = _wal_position(connection)
        connection.execute(self.marker)
        connection.execute("RESET synchronous_commit")
        written = Written(changes, before + 1, _wal_position(connection))
        connection.execute("CHECKPOINT")
        return written


@dataclass(frozen=True, slots=True)
class Written:
    """A stretch of WAL with so many row changes. Only the last commit reaches `marker_lsn`; `end_lsn` is after it."""

    changes: int
    marker_lsn: int
    end_lsn: int


def _wal_position(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
    assert row is not None
    return parse_lsn(row[0])


SMALL = Workload("small", "public.small", _SMALL_LOAD, _SMALL_MARKER, _SMALL_TABLE)
TURNS = Workload("turns", "public.turns", _TURNS_LOAD, _TURNS_MARKER)
WORKLOADS = (SMALL, TURNS)
