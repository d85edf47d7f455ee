"""The least that Python can do: a blocking `psycopg.pq` loop that throws every message away and counts the changes.

Run as a program: `python -m tests.bench.bare DSN SLOT PUBLICATION MARKER_LSN`. Prints a line of JSON: changes, seconds.
"""

import json
import select
import sys
import time

from psycopg import pq
from psycopg.conninfo import make_conninfo
from psycopg.pq.abc import PGconn

from cdc.lsn import parse_lsn

_HOUR_S = 3600
_COMMIT_AT = 25  # XLogData: w, start, end, time: the message's type byte follows
_END_OF_COMMIT_AT = 35  # Commit: C, flags, commit_lsn, end_lsn


def _start(connection: PGconn, slot: str, publication: str) -> None:
    options = f"proto_version '1', publication_names '{publication}', messages 'true'"
    result = connection.exec_(f'START_REPLICATION SLOT "{slot}" LOGICAL 0/0 ({options})'.encode())
    if result.status != pq.ExecStatus.COPY_BOTH:
        raise SystemExit(result.error_message.decode())


def _wait_readable(connection: PGconn) -> None:
    ready, _, _ = select.select([connection.socket], [], [], _HOUR_S)
    if not ready:
        raise SystemExit("nothing to read")
    connection.consume_input()


def _count_until(connection: PGconn, marker_lsn: int) -> int:
    changes = 0
    marker = marker_lsn.to_bytes(8, "big")
    while True:
        nbytes, data = connection.get_copy_data(1)
        if nbytes == 0:
            _wait_readable(connection)
            continue
        if nbytes < 0:
            raise SystemExit("the server ended the stream")
        frame = bytes(data)
        kind = frame[_COMMIT_AT : _COMMIT_AT + 1] if frame[:1] == b"w" else b""
        if kind in (b"I", b"U", b"D"):
            changes += 1
        elif kind == b"C" and frame[_END_OF_COMMIT_AT : _END_OF_COMMIT_AT + 8] >= marker:
            return changes


def main() -> None:
    dsn, slot, publication, marker_lsn = sys.argv[1:5]
    connection = pq.PGconn.connect(make_conninfo(dsn, replication="database").encode())
    if connection.status != pq.ConnStatus.OK:
        raise SystemExit(connection.error_message.decode())
    _start(connection, slot, publication)
    connection.nonblocking = 1
    started = time.monotonic()
    changes = _count_until(connection, parse_lsn(marker_lsn))
    print(json.dumps({"changes": changes, "seconds": time.monotonic() - started}))
    connection.finish()


if __name__ == "__main__":
    main()
