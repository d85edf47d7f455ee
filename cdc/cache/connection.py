"""A connection sends commands to Redis, returns its answers, and turns its errors into ours.

Commands are packed here: redis-py's own packing takes longer than Redis does to apply the rows. A command without an
answer raises Unavailable and closes the connection; only Redis knows whether it was carried out. Nothing is tried
twice here.
"""

import re
from collections.abc import Sequence
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cdc.config import CacheSettings
from cdc.errors import CdcError, Invalid, Unavailable

# A script's error carries the code anywhere in its text, depending on the server's version.
_REFUSED_FOR_NOW = re.compile(
    r"\b(OOM|READONLY|LOADING|MISCONF|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY|max number of clients)\b"
)
_REFUSED = re.compile(r"\b(NOAUTH|WRONGPASS|NOPERM|DENIED|CROSSSLOT|MOVED|WRONGTYPE|DB index is out of range)\b")
_NOSCRIPT = "NOSCRIPT"

_HINTS = {
    "OOM": "raise maxmemory, or let old entries go: CONFIG SET maxmemory-policy volatile-lru",
    "READONLY": "cache.url leads to a replica; it must lead to the primary",
    "MISCONF": "Redis cannot write its RDB file: look at its log and its disk",
    "NOPERM": "ACL SETUSER <user> ~* +@read +@write +@scripting +info +ping",
    "CROSSSLOT": "cache.url must lead to one server, not to a cluster: the checkpoint and the keys change together",
    "MOVED": "cache.url must lead to one server, not to a cluster: the checkpoint and the keys change together",
    "WRONGTYPE": "another program uses the key cdc:meta; give the cache a database of its own, as in redis://host/1",
}

_HEADERS = [b"\r\n$%d\r\n" % length for length in range(4096)]


def pack(arguments: Sequence[bytes]) -> bytes:
    """Pack one command in Redis's protocol ("RESP protocol spec": an array of bulk strings)."""
    parts = [b"*%d" % len(arguments)]
    headers = _HEADERS
    for argument in arguments:
        length = len(argument)
        parts.append(headers[length] if length < 4096 else b"\r\n$%d\r\n" % length)
        parts.append(argument)
    parts.append(b"\r\n")
    return b"".join(parts)


_ARGUMENTS = re.compile(r",? with args beginning with:.*", re.DOTALL)


class NoScript(Exception):
    """The server does not have the script: it restarted, failed over, or its scripts were flushed."""


class Connection:
    def __init__(self, settings: CacheSettings) -> None:
        if settings.url is None:
            raise Invalid("cache.url is not set", hint='[cache]\nurl = "redis://127.0.0.1:6379/0"')
        try:
            pool = ConnectionPool.from_url(
                settings.url.get_secret_value(),
                socket_timeout=settings.timeout_s,
                socket_connect_timeout=settings.timeout_s,
                retry=Retry(NoBackoff(), 0),
                decode_responses=False,
            )
            self._connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
        except (ValueError, TypeError) as error:
            raise Invalid(
                "cache.url is not an address of Redis",
                detail=str(error).replace(settings.url.get_secret_value(), "cache.url"),
                hint='[cache]\nurl = "redis://127.0.0.1:6379/0"',
            ) from error

    async def call(self, *arguments: bytes) -> Any:
        """Send one command and wait for its answer. Raises Unavailable, Invalid or NoScript."""
        return await self.send(pack(arguments))

    async def send(self, packed: bytes) -> Any:
        """Send a packed command and wait for its answer. Raises Unavailable, Invalid or NoScript."""
        try:
            await self._connection.send_packed_command(packed)
            return await self._connection.read_response()
        except (RedisError, OSError) as error:
            if _NOSCRIPT in str(error) or type(error).__name__ == "NoScriptError":
                raise NoScript from error
            translated = translate(error)
            if not isinstance(error, ResponseError):
                await self.close()
            if translated is None:
                raise
            raise translated from error

    async def close(self) -> None:
        await self._connection.disconnect(nowait=True)


def translate(error: Exception) -> CdcError | None:
    """Turn Redis's error into one of ours, to be raised; None for an error that is a bug of ours."""
    # "unknown command 'X', with args beginning with: ..." quotes keys, and keys hold values of rows.
    text = _ARGUMENTS.sub("", str(error)) or type(error).__name__
    code = type(error).__name__
    if isinstance(error, AuthenticationError | NoPermissionError):
        found = _REFUSED.search(text)
        hint = _HINTS["NOPERM"] if isinstance(error, NoPermissionError) or (found and found[0] == "NOPERM") else ""
        return Invalid("Redis refuses the user of cache.url", detail=text, hint=hint or "check user and password")
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
        return Invalid(
            "the certificate of Redis cannot be verified",
            detail=text,
            hint="rediss://...?ssl_ca_certs=/path/ca.pem, and the host name that the certificate has",
        )
    match = _REFUSED_FOR_NOW.search(text) or _REFUSED_FOR_NOW.search(_CODES.get(code, ""))
    if match is not None:
        return Unavailable("Redis refuses commands for now", detail=text, hint=_HINTS.get(match[0], ""))
    refused = _REFUSED.search(text)
    if refused is not None:
        return Invalid(
            "Redis refuses the cache's commands", detail=text, hint=_HINTS.get(refused[0], "check cache.url")
        )
    if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError):
        return Unavailable("Redis is away", detail=text, hint="redis-cli -u $CDC_CACHE__URL ping")
    return None


# redis-py takes some codes off the text and makes them types.
_CODES = {
    "BusyLoadingError": "LOADING",
    "ReadOnlyError": "READONLY",
    "OutOfMemoryError": "OOM",
    "MasterDownError": "MASTERDOWN",
    "ClusterDownError": "CLUSTERDOWN",
    "TryAgainError": "TRYAGAIN",
    "MaxConnectionsError": "max number of clients",
}
