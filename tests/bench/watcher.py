"""When each turn's key becomes visible in Redis, told by Redis itself (keyspace notifications).

Run as a program: `python -m tests.bench.watcher PORT`, until SIGTERM; then it prints one line for each key: the turn's
id and the wall clock's seconds at which the notification was read. Redis sends it when the command that set the key is
done, so no reader can see the key sooner than Redis could tell us, and we pay for the way and for our own waking up.
"""

import contextlib
import re
import signal
import socket
import sys
import time

_SET = re.compile(rb"__:turn:([0-9a-f-]{36})\r\n\$\d+\r\nset\r\n")
_READ_BYTES = 1 << 20


class _Stopped(Exception):
    pass


def _stop(*_: object) -> None:
    raise _Stopped


def _watch(connection: socket.socket, seen: list[tuple[bytes, float]]) -> None:
    rest = b""
    while True:
        data = rest + connection.recv(_READ_BYTES)
        now = time.time()
        end = 0
        for match in _SET.finditer(data):
            seen.append((match[1], now))
            end = match.end()
        rest = data[end:]


def main() -> None:
    signal.signal(signal.SIGTERM, _stop)
    seen: list[tuple[bytes, float]] = []
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
        connection.sendall(b"CONFIG SET notify-keyspace-events K$\r\nPSUBSCRIBE __keyspace@0__:turn:*\r\n")
        print("watching", flush=True)
        with contextlib.suppress(_Stopped):
            _watch(connection, seen)
    for turn_id, at in seen:
        print(turn_id.decode(), repr(at))


if __name__ == "__main__":
    main()
