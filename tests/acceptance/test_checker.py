"""The checker itself: damage that is planted must turn it red, each kind by its own finding."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import zstandard

from tests.acceptance.conftest import as_replicator
from tests.faults.checker import TABLES, Verdict, cache_sampler, check
from tests.faults.history import Change, Json, Transaction
from tests.faults.objects import log_objects, read_directory
from tests.faults.witness import Witness, parse_line
from tests.faults.workload import Workload
from tests.servers import PostgresAddress, RedisAddress, flushed_redis, fresh_database
from tests.service import Service, install, wait_until

# One run's evidence serves all tests of this module.
pytestmark = pytest.mark.xdist_group("checker")

Line = dict[str, Any]
Lines = list[Line]


@dataclass
class Evidence:
    """What a short healthy run left behind."""

    dsn: str
    cache_url: str
    objects: dict[str, bytes]
    told: list[Transaction]

    def check(self, objects: dict[str, bytes] | None = None) -> Verdict:
        return check(self.dsn, self.objects if objects is None else objects, self.cache_url, self.told)


@pytest.fixture(scope="module")
def evidence(
    postgres_server: PostgresAddress, make_module_valkey: RedisAddress, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Evidence]:
    directory = tmp_path_factory.mktemp("evidence")
    with fresh_database(postgres_server) as dsn:
        install(dsn)
        witness = Witness(dsn, TABLES)
        url = (directory / "archive").as_uri()
        cache_url = flushed_redis(make_module_valkey, 0)
        with Service(directory, dsn=as_replicator(dsn), archive_url=url, cache_url=cache_url) as service:
            service.wait_until_caught_up(dsn)
            Workload(dsn, seed=5, rate=100, large_rows=300).run_for(3)
            service.wait_until_caught_up(dsn)
            assert service.stop() == 0
        yield Evidence(dsn, cache_url, read_directory(url), witness.transactions())


@pytest.fixture(scope="module")
def make_module_valkey(server_dir: Path) -> Iterator[RedisAddress]:
    """A server that no other test flushes."""
    from cdc.embedded import ValkeyServer

    with ValkeyServer(server_dir / "valkey-of-the-checker") as server:
        yield server


def rewrite(objects: dict[str, bytes], edit: Callable[[Line, Lines], Lines]) -> dict[str, bytes]:
    """Edit the segment with the most lines, and chain all that follow anew, so that only its content gives it away."""
    changed = dict(objects)
    log = {key: body for key, body in objects.items() if "log/" in key}
    target = max(log, key=lambda key: len(_unpack(log[key])) if _unpack(log[key])[0]["kind"] == "data" else 0)
    previous: bytes | None = None
    for key in sorted(log):
        header, *lines = _unpack(log[key])
        if key == target:
            lines = edit(header, lines)
            header["changes"] = len(lines)
        header["prev_sha256"] = None if previous is None else hashlib.sha256(previous).hexdigest()
        previous = changed[key] = _pack([header, *lines])
    return changed


def _unpack(body: bytes) -> Lines:
    stream = zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True)
    return [json.loads(line, parse_float=_keep_digits) for line in stream.read().splitlines()]


def _keep_digits(digits: str) -> str:
    return f"\0{digits}\0"


def _pack(lines: Lines) -> bytes:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    return zstandard.compress(re.sub(r'"\\u0000([^"]*)\\u0000"', r"\1", text).encode())


def one_of_several(lines: Lines) -> int:
    """A place in the lines of a transaction that has several."""
    return next(at for at, line in enumerate(lines) if line["seq"] == 1)


def test_a_healthy_run_has_no_findings(evidence: Evidence) -> None:
    verdict = evidence.check()
    assert verdict.findings == []
    assert verdict.figures["transactions"] > 50


def test_packing_alone_is_no_damage(evidence: Evidence) -> None:
    assert evidence.check(rewrite(evidence.objects, lambda _, lines: lines)).findings == []


def test_a_row_dropped_from_a_transaction_is_found(evidence: Evidence) -> None:
    def drop(_: Line, lines: Lines) -> Lines:
        del lines[one_of_several(lines)]
        return lines

    assert evidence.check(rewrite(evidence.objects, drop)).figures["torn"] == 1


def test_the_last_row_dropped_from_a_transaction_is_found(evidence: Evidence) -> None:
    """No number is missing then; only the witness knows."""

    def drop(_: Line, lines: Lines) -> Lines:
        at = one_of_several(lines)
        while at + 1 < len(lines) and lines[at + 1]["ord"] == lines[at]["ord"]:
            at += 1
        return lines[:at] + lines[at + 1 :]

    verdict = evidence.check(rewrite(evidence.objects, drop))
    assert verdict.figures["torn"] == 1


def test_a_transaction_dropped_is_found(evidence: Evidence) -> None:
    def drop(header: Line, lines: Lines) -> Lines:
        kept = [line for line in lines if line["ord"] != lines[0]["ord"]]
        header["transactions"] -= 1
        del header["ends"][0]
        return [{**line, "ord": line["ord"] - 1} for line in kept]

    assert evidence.check(rewrite(evidence.objects, drop)).figures["lost"] == 1


def test_a_transaction_doubled_is_found(evidence: Evidence) -> None:
    def double(header: Line, lines: Lines) -> Lines:
        first = [line for line in lines if line["ord"] == lines[0]["ord"]]
        header["transactions"] += 1
        header["ends"].insert(0, header["ends"][0])
        return first + [{**line, "ord": line["ord"] + 1} for line in lines]

    assert evidence.check(rewrite(evidence.objects, double)).figures["duplicate"] == 1


def test_two_transactions_swapped_are_found(evidence: Evidence) -> None:
    def swap(header: Line, lines: Lines) -> Lines:
        first, second = lines[0]["ord"], lines[0]["ord"] + 1
        a = [{**line, "ord": second} for line in lines if line["ord"] == first]
        b = [{**line, "ord": first} for line in lines if line["ord"] == second]
        header["ends"][:2] = reversed(header["ends"][:2])
        return b + a + lines[len(a) + len(b) :]

    verdict = evidence.check(rewrite(evidence.objects, swap))
    assert verdict.figures["reordered"] == 1
    assert any("comes after a later commit" in finding for finding in verdict.findings)


def test_a_transaction_invented_is_found(evidence: Evidence) -> None:
    def invent(_: Line, lines: Lines) -> Lines:
        return [{**line, "xid": 4_000_000} if line["ord"] == lines[0]["ord"] else line for line in lines]

    figures = evidence.check(rewrite(evidence.objects, invent)).figures
    assert (figures["phantom"], figures["lost"]) == (1, 1)


def _inserted_turn(lines: Lines) -> Line:
    return next(line for line in lines if line["op"] == "c" and line["table"] == "public.turns")


@pytest.mark.parametrize(
    ("column", "value"),
    [("content", None), ("role", "User"), ("metadata", {"n": 1e5}), ("redaction_version", 1), ("created_at", "now")],
)
def test_a_value_altered_is_found(evidence: Evidence, column: str, value: object) -> None:
    def alter(_: Line, lines: Lines) -> Lines:
        _inserted_turn(lines)["after"][column] = value
        return lines

    verdict = evidence.check(rewrite(evidence.objects, alter))
    assert verdict.figures["altered"] == 1
    assert any("replayed" in finding for finding in verdict.findings) or column in str(verdict)


def test_a_number_written_as_a_string_is_found(evidence: Evidence) -> None:
    def quote(_: Line, lines: Lines) -> Lines:
        row = _inserted_turn(lines)["after"]
        row["redaction_version"] = str(row["redaction_version"])
        return lines

    assert any("not a number" in finding for finding in evidence.check(rewrite(evidence.objects, quote)).findings)


def test_a_byte_flipped_in_any_segment_is_found(evidence: Evidence) -> None:
    for key, body in evidence.objects.items():
        if "log/" not in key:
            continue
        damaged = bytearray(body)
        damaged[len(body) // 2] ^= 1
        assert evidence.check({**evidence.objects, key: bytes(damaged)}).findings, key


def test_a_segment_deleted_is_found(evidence: Evidence) -> None:
    seqs = list(log_objects(evidence.objects))
    for seq in (seqs[0], seqs[len(seqs) // 2]):
        kept = {key: body for key, body in evidence.objects.items() if f"{seq:016}" not in key}
        assert evidence.check(kept).findings


def test_the_last_data_segment_deleted_is_found(evidence: Evidence) -> None:
    log = log_objects(evidence.objects)
    last = max(seq for seq, body in log.items() if _unpack(body)[0]["kind"] in ("data", "part"))
    kept = {key: body for key, body in evidence.objects.items() if "log/" not in key or _seq(key) < last}
    assert evidence.check(kept).figures["lost"] > 0


def _seq(key: str) -> int:
    return int(key.rsplit("/", 1)[1].split(".")[0])


@pytest.fixture
def turn(evidence: Evidence) -> Iterator[tuple[redis.Redis, bytes]]:
    """The cache, and the key of a turn in it; put back as it was afterwards."""
    with redis.Redis.from_url(evidence.cache_url) as cache:
        key = next(iter(cache.scan_iter(match="turn:*")))
        kept = cache.dump(key)
        yield cache, key
        cache.restore(key, 7 * 86_400_000, kept, replace=True)


def test_a_stale_cache_key_is_found(evidence: Evidence, turn: tuple[redis.Redis, bytes]) -> None:
    cache, key = turn
    value: Any = cache.get(key)
    cache.set(key, json.dumps({**json.loads(value), "redaction_version": 77}), keepttl=True)
    assert evidence.check().figures["stale_keys"] == 1


def test_a_missing_cache_key_is_found(evidence: Evidence, turn: tuple[redis.Redis, bytes]) -> None:
    cache, key = turn
    cache.delete(key)
    assert evidence.check().figures["stale_keys"] == 1


def test_a_cache_key_that_never_expires_is_found(evidence: Evidence) -> None:
    with redis.Redis.from_url(evidence.cache_url) as cache:
        key = min(cache.scan_iter(match="session:*"))
        cache.persist(key)
        assert "never expire" in str(evidence.check())
        cache.expire(key, 7 * 86_400)


def test_a_cache_key_without_a_row_is_found(evidence: Evidence) -> None:
    with redis.Redis.from_url(evidence.cache_url) as cache:
        cache.set("turn:nobody", "{}", ex=100)
        try:
            assert "have no row" in str(evidence.check())
        finally:
            cache.delete("turn:nobody")


def test_a_history_member_too_many_or_missing_is_found(evidence: Evidence) -> None:
    with redis.Redis.from_url(evidence.cache_url) as cache:
        key = next(iter(cache.scan_iter(match="session:*:turns")))
        [(member, score)] = cache.zrange(key, 0, 0, withscores=True)
        cache.zadd(key, {b'{"id":0}': 0})
        assert evidence.check().figures["stale_keys"] == 1
        cache.zrem(key, b'{"id":0}', member)
        assert evidence.check().figures["stale_keys"] == 1
        cache.zadd(key, {member: score})
        cache.expire(key, 7 * 86_400)


def test_a_stale_state_is_found(evidence: Evidence) -> None:
    with redis.Redis.from_url(evidence.cache_url) as cache:
        key = next(iter(cache.scan_iter(match="session:*:state")))
        kept: Any = cache.get(key)
        cache.set(key, json.dumps({**json.loads(kept), "role": "nobody"}), keepttl=True)
        assert evidence.check().figures["stale_keys"] == 1
        cache.set(key, kept, keepttl=True)


def test_a_cache_key_that_goes_back_is_seen_by_the_sampler(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as cache, cache_sampler(redis_url) as sampler:
        for version in (1, 2, 1):
            cache.set("turn:x", json.dumps({"redaction_version": version}))
            seen = sampler.looks
            wait_until(lambda seen=seen: sampler.looks > seen + 2, "the sampler looked")  # type: ignore[misc]
        cache.delete("turn:x")
        wait_until(lambda: sampler.looks > seen + 6, "the sampler looked")
        cache.set("turn:x", json.dumps({"redaction_version": 3}))
        wait_until(lambda: sampler.looks > seen + 10, "the sampler looked")
    assert sampler.findings[0] == "turn:x went back from version 2 to 1"
    assert sampler.findings[-1] == "turn:x came back after it was gone"


def test_what_test_decoding_prints_is_understood(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("""CREATE TABLE "odd [Table]" (id int PRIMARY KEY, "a ""b" text[], t text, j jsonb)""")
        connection.execute("SELECT pg_create_logical_replication_slot('odd', 'test_decoding')")
        connection.execute("""INSERT INTO "odd [Table]" VALUES (1, '{"it''s",null}', 'x ]: '' y', '{"a": 1.0}')""")
        connection.execute("""UPDATE "odd [Table]" SET id = 2, t = NULL""")
        connection.execute("""DELETE FROM "odd [Table]" """)
        told = connection.execute("SELECT data FROM pg_logical_slot_get_changes('odd', NULL, NULL)").fetchall()
        connection.execute("SELECT pg_drop_replication_slot('odd')")
    lines = [data for (data,) in told if data.startswith("table")]
    table = 'public."odd [Table]"'
    json_value = Json.parse('{"a": 1.0}')
    assert [change for line in lines for change in parse_line(line)] == [
        Change("c", table, {"id": "1", 'a "b': "{it's,NULL}", "t": "x ]: ' y", "j": json_value}),
        Change("u", table, {"id": "2", 'a "b': "{it's,NULL}", "t": None, "j": json_value}, {"id": "1"}),
        Change("d", table, None, {"id": "2"}),
    ]
