"""What happens to the cache when Redis is killed, emptied, full, away, or answers into nothing."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from cdc.cache.plan import Plan
from cdc.cache.sink import CacheSink
from cdc.change import Batch, Relation, Transaction
from cdc.config import CacheSettings
from cdc.embedded import ValkeyServer
from cdc.errors import Invalid, Moved, Unavailable
from cdc.position import Position
from cdc.row import Row
from tests.conftest import MakeValkey
from tests.support.cache_model import (
    EPOCH,
    NOW_US,
    PROJECTIONS,
    START,
    CacheModel,
    command,
    created,
    end_lsn,
    pieces,
    read_cache,
    snapshot,
    transaction,
    truncated,
    turn,
    updated,
)


def settings_of(url: str, **other: float) -> CacheSettings:
    return CacheSettings(url=SecretStr(url), projections=PROJECTIONS, **other)


@asynccontextmanager
async def opened(settings: CacheSettings, *, warm: bool = True) -> AsyncIterator[CacheSink]:
    sink = CacheSink(settings, EPOCH)
    try:
        if warm:
            await sink.open()
            await sink.warm(snapshot(), START, NOW_US)
        yield sink
    finally:
        await sink.close()


def batch(*transactions: Transaction) -> Batch:
    return Batch(list(transactions))


def model_of(*transactions: Transaction) -> CacheModel:
    model = CacheModel()
    model.apply(batch(*transactions))
    return model


def some_transactions(count: int) -> list[Transaction]:
    """Rows that are created, and changed by the next transaction."""
    made = []
    for number in range(1, count + 1):
        old, new = turn(number - 1, f"s{(number - 1) % 7}"), turn(number, f"s{number % 7}")
        changed = {**old, "content": "changed"}
        changes = [created(new)] if number == 1 else [updated(old, changed), created(new)]
        made.append(transaction(number, NOW_US, *changes))
    return made


class Wire:
    """A wire to Redis that can be cut before or after the server has done what it was told."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self.lose_answers = False
        self.cut_after_bytes = -1
        self._ends: list[asyncio.StreamWriter] = []
        self._connections: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def url(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        async with server:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
            for end in self._ends:
                end.transport.abort()
            await asyncio.gather(*self._connections)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.append(asyncio.create_task(self._connect(reader, writer)))

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ends.append(writer)
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        self._ends.append(to_writer)
        with suppress(OSError):
            await asyncio.gather(self._forth(reader, to_writer), self._back(to_reader, writer))
        for end in (writer, to_writer):
            end.close()
            with suppress(OSError):
                await end.wait_closed()

    async def _forth(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.cut_after_bytes >= 0:
                data = data[: self.cut_after_bytes]
            writer.write(data)
            await writer.drain()
            if self.cut_after_bytes >= 0:
                break
        if writer.can_write_eof() and not writer.is_closing():
            writer.write_eof()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.lose_answers:
                break
            writer.write(data)
            await writer.drain()
        writer.close()


# Answers that do not come --------------------------------------------------------------------------------------------


async def test_a_lost_answer_is_settled_by_looking(make_valkey: MakeValkey) -> None:
    wire = Wire(make_valkey().port)
    async with wire.url() as url, opened(settings_of(url)) as sink:
        first, second, third = some_transactions(3)
        await sink.write(batch(first))
        wire.lose_answers = True
        with pytest.raises(Unavailable):
            await sink.write(batch(second))
        wire.lose_answers = False
        assert await sink.write(batch(second, third)) == end_lsn(3)
        assert await read_cache(settings_of(url)) == model_of(first, second, third).entries


async def test_a_checkpoint_that_went_back_while_nobody_looked_is_noticed(make_valkey: MakeValkey) -> None:
    """A failover that lost its tail, at the very moment when an answer was lost."""
    server = make_valkey()
    wire = Wire(server.port)
    async with (
        wire.url() as url,
        opened(settings_of(url)) as sink,
        opened(settings_of(server.url), warm=False) as other,
    ):
        first, second, third = some_transactions(3)
        await sink.write(batch(first))
        wire.lose_answers = True
        with pytest.raises(Unavailable):
            await sink.write(batch(second))
        wire.lose_answers = False
        await command(other, "HSET", "cdc:meta", "lsn", "0/8")
        with pytest.raises(Moved):
            await sink.write(batch(second, third))
        assert await sink.open() == START


async def test_a_command_that_was_cut_in_its_middle_did_nothing(make_valkey: MakeValkey) -> None:
    wire = Wire(make_valkey().port)
    async with wire.url() as url, opened(settings_of(url)) as sink:
        first, second = some_transactions(2)
        await sink.write(batch(first))
        wire.cut_after_bytes = 200
        with pytest.raises(Unavailable):
            await sink.write(batch(second))
        wire.cut_after_bytes = -1
        assert await sink.open() == Position(EPOCH, end_lsn(1))
        assert await sink.write(batch(first, second)) == end_lsn(2)
        assert await read_cache(settings_of(url)) == model_of(first, second).entries


async def test_a_cancelled_write_is_settled_too(make_valkey: MakeValkey) -> None:
    server = make_valkey()
    async with opened(settings_of(server.url)) as sink:
        first, second = some_transactions(2)
        os.kill(server.pid, signal.SIGSTOP)
        writing = asyncio.create_task(sink.write(batch(first)))
        await asyncio.sleep(0.1)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        os.kill(server.pid, signal.SIGCONT)
        assert await sink.write(batch(first, second)) == end_lsn(2)
        assert await read_cache(settings_of(server.url)) == model_of(first, second).entries


async def test_a_server_that_hangs_is_unavailable_after_the_timeout(make_valkey: MakeValkey) -> None:
    server = make_valkey()
    async with opened(settings_of(server.url, timeout_s=0.3)) as sink:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable):
                await sink.write(batch(*some_transactions(1)))
            with pytest.raises(Unavailable):
                await sink.open()
        finally:
            os.kill(server.pid, signal.SIGCONT)


async def test_a_killed_server_comes_back_with_data_and_checkpoint_together(make_valkey: MakeValkey) -> None:
    """SIGKILL while batches run, three times. The append-only file loses its tail, data and checkpoint alike."""
    server = make_valkey(settings={"appendonly": "yes", "appendfsync": "everysec"})
    transactions = some_transactions(600)
    async with opened(settings_of(server.url, batch_rows=4)) as sink:
        for killed_after_s in (0.03, 0.05, 0.08):
            killing = asyncio.create_task(_kill(server, killed_after_s))
            with pytest.raises(Unavailable):
                await _write_until_it_fails(sink, transactions)
            await killing
            await asyncio.to_thread(server.start)
            position = await sink.open()
            assert position is not None
            applied = [each for each in transactions if each.end_lsn <= position.lsn]
            assert await read_cache(settings_of(server.url)) == model_of(*applied).entries
        assert await sink.write(batch(*transactions)) == end_lsn(600)
        assert await read_cache(settings_of(server.url)) == model_of(*transactions).entries


async def _write_until_it_fails(sink: CacheSink, transactions: list[Transaction]) -> None:
    await sink.write(batch(*transactions))
    while True:
        await sink._calls.send_now(Plan(), sink._calls.checkpoint)


async def _kill(server: ValkeyServer, after_s: float) -> None:
    await asyncio.sleep(after_s)
    server.kill()


async def test_a_server_that_is_away_is_unavailable(make_valkey: MakeValkey) -> None:
    server = make_valkey()
    async with opened(settings_of(server.url)) as sink:
        server.stop()
        for _ in range(2):
            with pytest.raises(Unavailable) as caught:
                await sink.write(batch(*some_transactions(1)))
            assert "redis-cli" in caught.value.hint
        server.start()
        assert await sink.open() is None  # nothing was persisted


async def test_a_restarted_server_does_not_know_the_script_and_is_told(make_valkey: MakeValkey) -> None:
    server = make_valkey(settings={"appendonly": "yes", "appendfsync": "always"})
    first, second = some_transactions(2)
    async with opened(settings_of(server.url)) as sink:
        await sink.write(batch(first))
        await asyncio.to_thread(server.restart)
        with pytest.raises(Unavailable):
            await sink.write(batch(second))
        assert await sink.write(batch(second)) == end_lsn(2)
        assert await read_cache(settings_of(server.url)) == model_of(first, second).entries


# A cache that was changed behind our back ----------------------------------------------------------------------------


@pytest.mark.parametrize("emptying", [("FLUSHALL",), ("DEL", "cdc:meta")])
async def test_an_emptied_cache_is_noticed_by_the_next_batch(redis_url: str, emptying: tuple[str, ...]) -> None:
    first, second = some_transactions(2)
    async with opened(settings_of(redis_url)) as sink:
        await sink.write(batch(first))
        await command(sink, *emptying)
        before = await read_cache(settings_of(redis_url))
        with pytest.raises(Moved):
            await sink.write(batch(second))
        assert await read_cache(settings_of(redis_url)) == before
        assert await sink.open() is None


async def test_an_emptied_cache_is_noticed_in_the_middle_of_a_warm_up(redis_url: str) -> None:
    async with opened(settings_of(redis_url), warm=False) as sink:
        await sink.open()

        async def flushed() -> AsyncIterator[tuple[Relation, list[Row]]]:
            async for chunk in snapshot(turn(1), turn(2)):
                yield chunk
            await command(sink, "FLUSHALL")

        with pytest.raises(Moved):
            await sink.warm(flushed(), START, NOW_US)
        assert await sink.open() is None


async def test_a_truncate_that_is_interrupted_is_finished_by_the_replay(make_valkey: MakeValkey) -> None:
    wire = Wire(make_valkey().port)
    async with wire.url() as url, opened(settings_of(url)) as sink:
        first = transaction(1, NOW_US, *(created(turn(id)) for id in range(40)))
        second = transaction(2, NOW_US, created(turn(50)), truncated(), created(turn(51)))
        await sink.write(batch(first))
        truncating = asyncio.create_task(sink.write(batch(second)))
        while sink._calls.checkpoint.part == b"":
            await asyncio.sleep(0)
        wire.lose_answers = True
        with pytest.raises(Unavailable):
            await truncating
        wire.lose_answers = False
        assert await sink.open() == Position(EPOCH, end_lsn(1), second.commit_lsn, 1)
        assert await sink.write(batch(second)) == end_lsn(2)
        assert await read_cache(settings_of(url)) == model_of(first, second).entries


async def test_a_late_step_of_a_truncate_does_not_pass_for_one_of_its_replay(
    make_valkey: MakeValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the simulation (seed 66512): the replay's second step removes other keys than the late one."""
    late: list[bytes] = []
    async with opened(settings_of(make_valkey().url)) as sink:
        first = transaction(1, NOW_US, *(created(turn(id)) for id in range(4)))
        second = transaction(2, NOW_US, truncated(), created(turn(51)))
        await sink.write(batch(first))
        send = sink._connection.send

        async def delayed(packed: bytes) -> object:
            if b":0:2-" not in packed:
                return await send(packed)
            late.append(packed)
            raise Unavailable("no answer")

        with monkeypatch.context() as patch:
            patch.setattr(sink._connection, "send", delayed)
            with pytest.raises(Unavailable):
                await sink.write(batch(second))
        assert await sink.open() == Position(EPOCH, end_lsn(1), second.commit_lsn, 0)
        await sink._connection.send(late[0])
        with pytest.raises(Moved):
            await sink.write(batch(second))
        await sink.open()
        assert await sink.write(batch(second)) == end_lsn(2)
        assert await read_cache(sink._settings) == model_of(first, second).entries


async def test_pieces_go_on_after_any_lost_answer(make_valkey: MakeValkey) -> None:
    wire = Wire(make_valkey().port)
    whole = transaction(1, NOW_US, *(created(turn(id, f"s{id % 3}", pos=id)) for id in range(9)))
    async with wire.url() as url, opened(settings_of(url, batch_rows=2)) as sink:
        for piece in pieces(whole, 3, 6):
            wire.lose_answers = True
            with pytest.raises(Unavailable):
                await sink.write(batch(piece))
            wire.lose_answers = False
            await sink.write(batch(piece))
        assert sink.position == Position(EPOCH, end_lsn(1))
        assert await read_cache(settings_of(url)) == model_of(whole).entries


# Refusals ------------------------------------------------------------------------------------------------------------


async def test_a_full_redis_leaves_checkpoint_and_data_untouched(make_valkey: MakeValkey) -> None:
    server = make_valkey(settings={"maxmemory-policy": "noeviction"})
    first, second = some_transactions(2)
    async with opened(settings_of(server.url)) as sink:
        await sink.write(batch(first))
        before = await read_cache(settings_of(server.url))
        await command(sink, "CONFIG", "SET", "maxmemory", "1")
        # The first key's operation is one that Redis allows when it is full: it must not open the door to the rest.
        moving = transaction(2, NOW_US, updated(turn(1, "s1"), turn(1, "s2", turn_id="moved")))
        for refused in (second, moving):
            with pytest.raises(Unavailable) as caught:
                await sink.write(batch(refused))
            assert "maxmemory" in caught.value.hint
        await command(sink, "CONFIG", "SET", "maxmemory", "0")
        assert await sink.open() == Position(EPOCH, end_lsn(1))
        assert await read_cache(settings_of(server.url)) == before
        assert await sink.write(batch(second)) == end_lsn(2)


async def test_eviction_takes_rows_but_not_the_checkpoint(make_valkey: MakeValkey) -> None:
    server = make_valkey(settings={"maxmemory-policy": "volatile-lru"})
    async with opened(settings_of(server.url)) as sink:
        used = int(str(await command(sink, "INFO", "memory")).split("used_memory:")[1].split("\\r")[0])
        await command(sink, "CONFIG", "SET", "maxmemory", str(used + 12_000_000))
        large = "x" * 2000
        transactions = [transaction(n, NOW_US, created(turn(n, content=large))) for n in range(1, 8001)]
        assert await sink.write(batch(*transactions)) == end_lsn(8000)
        assert len(await read_cache(settings_of(server.url))) < 8000
        assert await sink.open() == Position(EPOCH, end_lsn(8000))


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
async def test_a_policy_that_evicts_the_checkpoint_is_warned_of(make_valkey: MakeValkey, policy: str) -> None:
    server = make_valkey(settings={"maxmemory-policy": policy})
    with capture_logs() as logs:
        async with opened(settings_of(server.url)):
            pass
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["cache_eviction_hits_checkpoint"]
    assert "volatile-lru" in logs[0]["hint"]


async def test_a_replica_is_unavailable(make_valkey: MakeValkey) -> None:
    primary = make_valkey()
    async with opened(settings_of(primary.url)) as sink:
        await command(sink, "REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(Unavailable) as caught:
            await sink.write(batch(*some_transactions(1)))
        assert "primary" in caught.value.hint
        with pytest.raises(Unavailable):
            await sink.open()


async def test_a_cluster_is_refused(make_valkey: MakeValkey) -> None:
    server = make_valkey(settings={"cluster-enabled": "yes"})
    async with opened(settings_of(server.url), warm=False) as sink:
        with pytest.raises(Invalid) as caught:
            await sink.open()
        assert "one server" in caught.value.hint


async def test_a_wrong_password_is_a_mistake_of_the_configuration(make_valkey: MakeValkey) -> None:
    server = make_valkey(settings={"requirepass": "secret"})
    for url in (server.url, server.url.replace("redis://", "redis://:wrong@")):
        async with opened(settings_of(url), warm=False) as sink:
            with pytest.raises(Invalid) as caught:
                await sink.open()
            assert "wrong@" not in caught.value.explain()
    async with opened(settings_of(server.url.replace("redis://", "redis://:secret@"))) as sink:
        assert sink.position == START


async def test_a_user_who_may_not_is_a_mistake_of_the_configuration(make_valkey: MakeValkey) -> None:
    server = make_valkey()
    async with opened(settings_of(server.url)) as admin:
        await command(admin, "ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@read", "+info")
        await command(admin, "ACL", "SETUSER", "writer", "on", ">pw", "~*", "+@read", "+@write", "+@scripting", "+info")
    async with opened(settings_of(server.url.replace("redis://", "redis://reader:pw@")), warm=False) as sink:
        await sink.open()
        with pytest.raises(Invalid) as caught:
            await sink.write(batch(*some_transactions(1)))
        assert "ACL SETUSER" in caught.value.hint
    async with opened(settings_of(server.url.replace("redis://", "redis://writer:pw@"))) as sink:
        assert await sink.write(batch(*some_transactions(3))) == end_lsn(3)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:no/0", "redis://127.0.0.1/0?socket_timeout=much"])
def test_an_address_that_is_none_is_a_mistake_of_the_configuration(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        CacheSink(settings_of(url), EPOCH)
    assert 'url = "redis://' in caught.value.hint


async def test_a_database_that_does_not_exist_is_a_mistake_of_the_configuration(make_valkey: MakeValkey) -> None:
    server = make_valkey()
    async with opened(settings_of(server.url.replace("/0", "/99")), warm=False) as sink:
        with pytest.raises(Invalid):
            await sink.open()


# Debian's Redis ------------------------------------------------------------------------------------------------------


@pytest.mark.wide
async def test_debians_redis_takes_every_operation(debian_redis: ValkeyServer) -> None:
    transactions = [*some_transactions(50), transaction(51, NOW_US, created(turn(70)), truncated(), created(turn(71)))]
    async with opened(settings_of(debian_redis.url, batch_rows=7)) as sink:
        await sink.write(batch(*transactions[:50]))
        assert await read_cache(settings_of(debian_redis.url)) == model_of(*transactions[:50]).entries
        await command(sink, "SCRIPT", "FLUSH")
        await sink.write(batch(*transactions))
        assert await read_cache(settings_of(debian_redis.url)) == model_of(*transactions).entries
        await command(sink, "CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", "1")
        with pytest.raises(Unavailable):
            await sink.write(batch(transaction(52, NOW_US, created(turn(80)))))
        await command(sink, "CONFIG", "SET", "maxmemory", "0")
        assert await sink.open() == Position(EPOCH, end_lsn(51))


async def test_an_interrupted_truncate_never_returns_to_a_checkpoint_that_it_left(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a failover of Redis, back to the first of two states of one name, would bring truncated rows back."""
    async with opened(settings_of(redis_url)) as sink:
        whole = transaction(2, NOW_US, truncated(), created(turn(9)))
        await sink.write(batch(transaction(1, NOW_US, created(turn(1)), created(turn(2, session="b")))))
        calls, sweep = sink._calls, sink._sweep
        left, unlink, send = [calls.checkpoint], sweep._unlink_matching, calls._send

        async def unlink_and_fail(pattern: bytes, table: str | None) -> None:
            await unlink(pattern, table)
            raise Unavailable("cut off")

        async def send_and_note(call: object) -> None:
            await send(call)  # type: ignore[arg-type]
            left.append(calls.checkpoint)

        monkeypatch.setattr(calls, "_send", send_and_note)
        monkeypatch.setattr(sweep, "_unlink_matching", unlink_and_fail)
        with pytest.raises(Unavailable):
            await sink.write(batch(whole))
        monkeypatch.setattr(sweep, "_unlink_matching", unlink)
        await sink.open()
        await sink.write(batch(whole))
        assert len(left) == len(set(left)) > 4
        assert await read_cache(settings_of(redis_url)) == model_of(transaction(2, NOW_US, created(turn(9)))).entries


async def test_two_writers_that_take_the_same_step_do_not_take_it_for_one(redis_url: str) -> None:
    settings = settings_of(redis_url)
    async with opened(settings) as first, opened(settings, warm=False) as second:
        await second.open()
        assert first._calls.checkpoint == second._calls.checkpoint
        await first._calls.send_now(Plan(), first._calls.next_step())
        with pytest.raises(Moved):
            await second._calls.send_now(Plan(), second._calls.next_step())
