"""Redis as the cache's sink sees it: the script's compare-and-set with string keys, over a network that loses answers.

Its face is that of `cdc.cache.connection.Connection`. It is checked while it changes: whenever `cdc:meta` names a
position, the keys are what the database held there (P5's stronger form); and no key goes back to an older version,
but for a failover of Redis itself or of the database.
"""

import fnmatch
import json
from collections.abc import Callable, Sequence
from typing import Any

from cdc.cache.sink import Checkpoint
from cdc.lsn import parse_lsn
from tests.simulation.history import History, State
from tests.simulation.world import Weather, World

_SET, _UNLINK = 1, 2
_FIELDS = (b"lsn", b"epoch", b"generation", b"part")
TIMEOUT_S = 5.0
_NOTHING = Checkpoint()


class ModelRedis:
    def __init__(self, world: World, weather: Weather, histories: Callable[[], list[History]]) -> None:
        self.meta = _NOTHING
        self.keys: dict[bytes, bytes] = {}
        self.weather = weather
        self.calls = 0
        self.world = world
        self._histories = histories
        self._evicted: set[int] = set()
        self._served: dict[int, int] = {}
        self._epoch = b""
        self._kept: tuple[Checkpoint, dict[bytes, bytes], set[int]] = (_NOTHING, {}, set())

    # what befalls it

    def flush(self) -> None:
        self.world.fault("redis_flush")
        self.meta, self.keys = _NOTHING, {}

    def keep(self) -> None:
        """A replica, or the append-only file, has caught up to here."""
        self._kept = (self.meta, dict(self.keys), set(self._evicted))

    def fail_over(self) -> None:
        """What was not kept is lost, data and checkpoint together."""
        self.world.fault("redis_failover")
        self.meta, self.keys, self._evicted = self._kept[0], dict(self._kept[1]), set(self._kept[2])
        self._served.clear()

    def evict(self) -> None:
        if self.keys:
            key = self.world.dice.choice(sorted(self.keys))
            self.world.fault("eviction", key.decode())
            del self.keys[key]
            self._evicted.add(_id(key))

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
        self.calls += 1
        plan, at = json.loads(argv[9]), 0
        while at < len(plan):
            key = keys[plan[at + 1] - 1]
            if plan[at] == _SET:
                self._set(key, argv[plan[at + 3] - 1])
                at += 4
            elif plan[at] == _UNLINK:
                self.keys.pop(key, None)
                at += 2
            else:
                raise AssertionError(f"operation {plan[at]} is not modelled")
        old, self.meta = self.meta, target
        self.world.tell(f"script applied: {target.describe()} operations={len(plan)}")
        self._check(old)
        return b"OK"

    def _set(self, key: bytes, value: bytes) -> None:
        self.keys[key] = value
        version, id_ = _version(_content(value)), _id(key)
        self._evicted.discard(id_)
        if version < self._served.get(id_, 0):
            raise self.world.fail(f"P5: {key.decode()} went back to v{version}, v{self._served[id_]} was served")
        self._served[id_] = version

    def _check(self, old: Checkpoint) -> None:
        if self.meta.epoch != self._epoch:
            # Another timeline: the database itself went back.
            self._epoch, self._served = self.meta.epoch, {}
        if old.generation != self.meta.generation:
            self._evicted.clear()
        if not self.meta.lsn:
            return
        if old.generation == self.meta.generation and old.lsn and parse_lsn(old.lsn.decode()) > self.lsn:
            raise self.world.fail(f"P5: the checkpoint went back: {old.describe()}, then {self.meta.describe()}")
        wrong = self.difference()
        if wrong:
            raise self.world.fail(f"P5: at {self.meta.describe()} the cache is not what the database was: {wrong}")

    @property
    def lsn(self) -> int:
        return parse_lsn(self.meta.lsn.decode()) if self.meta.lsn else 0

    @property
    def timeline(self) -> int:
        return int(self.meta.epoch.decode().rpartition("/")[2] or 0)

    def difference(self) -> str:
        """Where the keys are not the rows at the checkpoint's position; '' if they are."""
        history = next(one for one in self._histories() if str(one.epoch).encode() == self.meta.epoch)
        commit_lsn, seq, *_ = (*self.meta.part.decode().split(":"), "")
        expected: State = history.state_at(self.lsn, *((parse_lsn(commit_lsn), int(seq)) if seq else ()))
        found = {_id(key): _content(value) for key, value in self.keys.items()}
        wrong = {id_ for id_ in {*expected, *found} if expected.get(id_) != found.get(id_)}
        wrong -= {id_ for id_ in self._evicted if id_ not in found}
        return ", ".join(
            f"turn:{id_} is {_short(found.get(id_))} instead of {_short(expected.get(id_))}" for id_ in sorted(wrong)
        )


def _id(key: bytes) -> int:
    return int(key.removeprefix(b"turn:"))


def _content(value: bytes) -> str:
    return str(json.loads(value)["content"])


def _version(content: str) -> int:
    return int(content[1:].partition(" ")[0])


def _short(content: str | None) -> str:
    return "absent" if content is None else content.partition(" ")[0]


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
    """The arguments of one command in Redis's protocol."""
    end = packed.index(b"\r\n")
    arguments, at = [], end + 2
    for _ in range(int(packed[1:end])):
        end = packed.index(b"\r\n", at)
        size = int(packed[at + 1 : end])
        arguments.append(packed[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return arguments
