"""Models Redis as the cache's sink sees it: the script, written in Python, over a network that loses answers.

It has the methods of `cdc.cache.connection.Connection`. It is checked after every call (P5, and more): while `cdc:meta`
names a position, each key is what the rules make of the truth up to there, its expiry included (`oracle.py`).
"""

import fnmatch
import json
from collections.abc import Callable, Sequence
from typing import Any

from cdc.cache.checkpoint import Checkpoint
from cdc.errors import Unavailable
from cdc.lsn import parse_lsn
from tests.simulation.history import TIME_US, History
from tests.simulation.oracle import Oracle, Stored, ordered
from tests.simulation.world import Weather, World

_SET, _UNLINK, _ADD, _REPLACE, _NEWEST, _REVISE = range(1, 7)
_WIDTH = {_SET: 4, _UNLINK: 2, _ADD: 6, _REPLACE: 11, _NEWEST: 6, _REVISE: 7}
TIMEOUT_S = 5.0
_NOTHING = Checkpoint()


class ModelRedis:
    def __init__(self, world: World, weather: Weather, histories: Callable[[], list[History]]) -> None:
        self.meta = _NOTHING
        self.keys: dict[bytes, Stored] = {}
        self.oracle = Oracle()
        self.weather = weather
        self.calls = 0
        self.world = world
        self._histories = histories
        self._full = False
        self._kept = (self.meta, dict(self.keys), self.oracle.copy())

    # faults

    def flush(self) -> None:
        self.world.fault("redis_flush")
        self.meta, self.keys = _NOTHING, {}
        self.oracle.forget()

    def keep(self) -> None:
        """Save the present state, as when a replica or the append-only file has caught up to here."""
        self._kept = (self.meta, _copied(self.keys), self.oracle.copy())

    def fail_over(self) -> None:
        """Go back to the saved state: data and checkpoint are lost together."""
        self.world.fault("redis_failover")
        self.meta, self.keys, self.oracle = self._kept[0], _copied(self._kept[1]), self._kept[2].copy()

    def refuse(self, seconds: float) -> None:
        """Answer, but refuse writes for a time, as without memory or as a replica."""
        self.world.fault("redis_oom", f"{seconds} s")
        self._full = True
        self.world.later(seconds, setattr, self, "_full", False)

    def evict(self) -> None:
        if self.world.chance(0.1):
            self.world.fault("eviction", "cdc:meta")  # allkeys-*, which the sink warns of
            self.meta = _NOTHING
            self.oracle.forget()
        elif self.keys and self.oracle.history is not None:
            key = self.world.dice.choice(sorted(self.keys))
            self.world.fault("eviction", key.decode())
            del self.keys[key]
            self.oracle.model.entries.pop(key.decode(), None)

    # commands

    def carry_out(self, arguments: Sequence[bytes]) -> Any:
        match arguments[0]:
            case b"INFO":
                return b"redis_version:7.2.4\r\nrole:master\r\nloading:0\r\nmaxmemory_policy:volatile-lru\r\n"
            case b"HMGET":
                return [value or None for value in self.meta]
            case b"SCAN":
                pattern = arguments[3].decode()
                return [b"0", [key for key in self.keys if fnmatch.fnmatchcase(key.decode(), pattern)]]
            case b"EVALSHA" | b"EVAL":
                count = int(arguments[2])
                return self._call(arguments[3 : 3 + count], arguments[3 + count :])
        raise AssertionError(arguments[0])

    def _call(self, keys: Sequence[bytes], argv: Sequence[bytes]) -> Any:
        expected, target = Checkpoint(*argv[:4]), Checkpoint(*argv[4:8])
        if expected != self.meta:
            self.world.tell(f"script refused: expected {expected.describe()}, there is {self.meta.describe()}")
            return list(self.meta)
        if self._full:
            raise Unavailable("Redis refuses commands for now", detail="OOM command not allowed")
        self.calls += 1
        plan, at = json.loads(argv[9]), 0
        while at < len(plan):
            width = _WIDTH[plan[at]]
            self._operate(plan[at], keys[plan[at + 1] - 1], plan[at + 2 : at + width], argv)
            at += width
        old, self.meta = self.meta, target
        self.world.tell(f"script applied: {target.describe()} operations={len(plan)}")
        if wrong := self._check(old):
            raise self.world.fail(f"P5: at {self.meta.describe()} {wrong}")
        return b"OK"

    def _operate(self, operation: int, key: bytes, places: Sequence[int], argv: Sequence[bytes]) -> None:
        if operation == _SET:
            self.keys[key] = (argv[places[1] - 1], int(argv[places[0] - 1]))
        elif operation == _UNLINK:
            self.keys.pop(key, None)
        elif operation == _ADD:
            self._add(key, places[0], int(argv[places[1] - 1]), argv[places[2] - 1 : places[3]])
        elif operation == _REPLACE:
            self._replace(key, places, argv)
        elif operation == _NEWEST:
            value = argv[places[3] - 1]
            stored = self.keys.get(key)
            if stored is None or _order(stored[0]) <= _order(value):
                self.keys[key] = (value, int(argv[places[2] - 1]))
        elif operation == _REVISE:
            value = argv[places[3] - 1] if places[3] else b""
            self._revise(key, value, argv[places[4] - 1], int(argv[places[2] - 1]))

    def _add(self, key: bytes, limit: int, expiry_ms: int, pairs: Sequence[bytes]) -> None:
        members = self._members(key)
        for score, member in zip(pairs[::2], pairs[1::2], strict=True):
            members[member] = float(score)
        for member, _ in ordered(members)[:-limit]:
            del members[member]
        self.keys[key] = (members, expiry_ms)

    def _replace(self, key: bytes, places: Sequence[int], argv: Sequence[bytes]) -> None:
        limit, expiry, old, _score, _from, _to, first, last, reordered = places
        members = self._members(key)
        # Under REPLICA IDENTITY FULL the old member is known byte for byte.
        removed = old > 0 and members.pop(argv[old - 1], None) is not None
        if not members:
            self.keys.pop(key, None)
        if first and (removed or (reordered and key in self.keys)):
            self._add(key, limit, int(argv[expiry - 1]), argv[first - 1 : last])

    def _members(self, key: bytes) -> dict[bytes, float]:
        members = self.keys.get(key, ({}, 0))[0]
        assert isinstance(members, dict)
        return members

    def _revise(self, key: bytes, value: bytes, old: bytes, expiry_ms: int) -> None:
        stored = self.keys.get(key)
        if stored is None:
            return
        order = _order(stored[0])
        is_stored = old != b"" and order == int(old)
        if value and order <= _order(value) and (is_stored or old == b"" or _order(value) != int(old)):
            self.keys[key] = (value, expiry_ms)
        elif is_stored:
            del self.keys[key]

    # checks

    def _check(self, old: Checkpoint) -> str:
        """Check the keys after a call; '' if they are right. `old` is the checkpoint before it."""
        if not self.meta.lsn:
            self.oracle.forget()
            return ""
        if not old.lsn or old.generation != self.meta.generation:
            now_ms = TIME_US // 1000 + int(self.world.loop.time() * 1000)
            return self.oracle.warmed(self._history, self.lsn, self.keys, now_ms)
        wrong = self.oracle.advance(self.meta)
        # Between two steps at one position, as of a TRUNCATE, some of the keys are gone.
        return wrong or ("" if self.meta.part.count(b":") > 1 else self.oracle.difference(self.keys))

    @property
    def _history(self) -> History:
        return next(one for one in self._histories() if str(one.epoch).encode() == self.meta.epoch)

    @property
    def lsn(self) -> int:
        return parse_lsn(self.meta.lsn.decode()) if self.meta.lsn else 0


def _copied(keys: dict[bytes, Stored]) -> dict[bytes, Stored]:
    return {key: (dict(value) if isinstance(value, dict) else value, expiry) for key, (value, expiry) in keys.items()}


def _order(value: bytes | dict[bytes, float]) -> int:
    """Return the order column of a `latest`, with which its JSON begins."""
    assert isinstance(value, bytes)
    order = next(iter(json.loads(value).values()))
    assert isinstance(order, int)
    return order


class ModelConnection:
    def __init__(self, server: ModelRedis) -> None:
        self._server = server

    async def call(self, *arguments: bytes) -> Any:
        server = self._server
        return await server.world.request(
            server.weather, f"redis {arguments[0].decode()}", lambda: server.carry_out(arguments), TIMEOUT_S
        )

    async def send(self, packed: bytes) -> Any:
        return await self.call(*unpack(packed))

    async def close(self) -> None:
        pass


def unpack(packed: bytes) -> list[bytes]:
    """Read the arguments of one command in Redis's protocol."""
    end = packed.index(b"\r\n")
    arguments, at = [], end + 2
    for _ in range(int(packed[1:end])):
        end = packed.index(b"\r\n", at)
        size = int(packed[at + 1 : end])
        arguments.append(packed[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return arguments
