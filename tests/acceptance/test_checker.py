"""The checker itself: damage that is planted must turn it red, each kind by its own finding."""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import zstandard

from tests.acceptance.conftest import MakeService, as_replicator
from tests.faults.checker import TABLES, Verdict, acknowledgement_sampler, cache_sampler, check
from tests.faults.history import Change, Json, Transaction
from tests.faults.objects import log_objects, read_archive, read_directory, tail_of
from tests.faults.program import CheckerProcess
from tests.faults.reads import FULL, STATE, Reads, check_reads
from tests.faults.restore_points import Moment, Moments, check_restores
from tests.faults.witness import Witness, parse_line
from tests.faults.workload import Workload
from tests.support.cdc_process import Service, install, mark, query, wait_until
from tests.support.s3 import S3Server
from tests.support.servers import PostgresAddress, RedisAddress, flushed_redis, fresh_database

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
    reads: Reads
    moments: list[Moment]
    config_file: Path

    def check(self, objects: dict[str, bytes] | None = None) -> Verdict:
        return check(self.dsn, self.objects if objects is None else objects, self.cache_url, self.told)

    def check_restores(self, moments: list[Moment]) -> tuple[int, list[str]]:
        archive = read_archive(self.objects)
        return check_restores(self.dsn, self.config_file, moments, self.told, archive)


@pytest.fixture(scope="module")
def evidence(
    postgres_server: PostgresAddress, make_module_valkey: RedisAddress, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Evidence]:
    directory = tmp_path_factory.mktemp("evidence")
    with fresh_database(postgres_server) as dsn:
        install(dsn)
        witness = Witness(dsn, TABLES)
        query(
            dsn,
            "INSERT INTO turns (domain, channel, session_hash, role, content) VALUES ('d', 'c', 's', 'user', 'base')",
        )
        url = (directory / "archive").as_uri()
        cache_url = flushed_redis(make_module_valkey, 0)
        with Service(directory, dsn=as_replicator(dsn), archive_url=url, cache_url=cache_url) as service:
            service.wait_until_caught_up(dsn)
            with cache_sampler(cache_url, dsn=dsn) as cache, Moments(dsn, limit=3, mean_pause_s=0.5) as moments:
                Workload(dsn, seed=5, rate=100, large_rows=300).run_for(3)
                service.wait_until_caught_up(dsn)
            service.wait_until_caught_up(dsn)  # beyond the last moment too
            assert service.stop() == 0
        assert cache.findings + moments.findings == []
        objects, told = read_directory(url), witness.transactions()
        yield Evidence(dsn, cache_url, objects, told, cache.reads, moments.taken, service.config_file)


@pytest.fixture(scope="module")
def make_module_valkey(server_dir: Path) -> Iterator[RedisAddress]:
    """A server that no other test flushes."""
    from cdc.embedded import ValkeyServer

    with ValkeyServer(server_dir / "valkey-of-the-checker") as server:
        yield server


def rewrite(
    objects: dict[str, bytes],
    edit: Callable[[Line, Lines], Lines],
    having: Callable[[Line], bool] = lambda _: True,
) -> dict[str, bytes]:
    """Edit the segment with most lines of a kind, and chain all that follow anew: only its content gives it away."""

    def weight(body: bytes) -> int:
        header, *lines = _unpack(body)
        return sum(map(having, lines)) if header["kind"] == "data" else 0

    changed = dict(objects)
    log = {key: body for key, body in objects.items() if "log/" in key}
    target = max(log, key=lambda key: weight(log[key]))
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


def _has_toast(line: Line) -> bool:
    return line["op"] in "cu" and len(line["after"].get("content", "")) > 8000


def test_a_toast_value_nulled_is_found(evidence: Evidence) -> None:
    def null(_: Line, lines: Lines) -> Lines:
        next(filter(_has_toast, lines))["after"]["content"] = None
        return lines

    verdict = evidence.check(rewrite(evidence.objects, null, _has_toast))
    assert verdict.figures["altered"] == 1
    assert "new.content" in str(verdict)


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


def test_a_base_chunk_deleted_is_found(evidence: Evidence) -> None:
    kept = {key: body for key, body in evidence.objects.items() if not key.startswith("base/")}
    assert len(kept) < len(evidence.objects)
    assert any("is missing" in finding for finding in evidence.check(kept).findings)


def test_an_acknowledgement_ahead_of_the_archive_is_seen_by_the_sampler(evidence: Evidence) -> None:
    tail = tail_of(evidence.objects)
    mark(evidence.dsn)
    query(evidence.dsn, "SELECT pg_create_logical_replication_slot('ahead', 'test_decoding')")
    with (
        acknowledgement_sampler(evidence.dsn, lambda: tail) as honest,
        acknowledgement_sampler(evidence.dsn, lambda: tail, "ahead") as ahead,
    ):
        wait_until(lambda: min(honest.looks, ahead.looks) > 2, "both samplers looked")
    assert honest.findings == []
    assert "acknowledged" in ahead.findings[0]


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


def test_what_was_read_in_a_healthy_run_was_committed(evidence: Evidence) -> None:
    assert check_reads(evidence.reads, evidence.told) == []
    shapes = {shape for seen in evidence.reads.of_row.values() for _, (shape, _) in seen}
    assert shapes == {FULL, STATE}


def read_while(
    evidence: Evidence, plant: Callable[[redis.Redis], object], mend: Callable[[redis.Redis], object]
) -> Reads:
    """What a sampler reads while something is planted in the cache."""
    with redis.Redis.from_url(evidence.cache_url) as cache:
        plant(cache)
        with cache_sampler(evidence.cache_url, dsn=evidence.dsn) as sampler:
            wait_until(lambda: sampler.looks > 40, "the sampler came to every session")
        mend(cache)
    return sampler.reads


def test_a_state_that_was_never_committed_is_found(evidence: Evidence) -> None:
    with redis.Redis.from_url(evidence.cache_url) as cache:
        key = next(iter(cache.scan_iter(match="session:*:state")))
        kept: Any = cache.get(key)
    planted = json.dumps({**json.loads(kept), "role": "nobody"})
    reads = read_while(
        evidence, lambda it: it.set(key, planted, keepttl=True), lambda it: it.set(key, kept, keepttl=True)
    )
    [finding] = check_reads(reads, evidence.told)
    assert finding.startswith(key.decode())
    assert "never committed" in finding


def test_a_history_member_that_was_never_committed_is_found(evidence: Evidence) -> None:
    with redis.Redis.from_url(evidence.cache_url) as cache:
        key = next(iter(cache.scan_iter(match="session:*:turns")))
        [(member, score)] = cache.zrange(key, 0, 0, withscores=True)
    planted = json.dumps({**json.loads(member), "content": "nobody wrote this"})
    reads = read_while(evidence, lambda it: it.zadd(key, {planted: score}), lambda it: it.zrem(key, planted))
    assert any("never committed" in finding for finding in check_reads(reads, evidence.told))


def test_an_older_version_read_from_another_key_is_found(evidence: Evidence) -> None:
    versions = [change.new for change in changes_of_one_turn(evidence.told) if change.new is not None]
    reads = Reads()
    for key, row in zip(("turn:x", "session:s:turns", "turn:x"), (versions[0], versions[1], versions[0]), strict=True):
        reads.note(key, row, FULL)
    [finding] = check_reads(reads, evidence.told)
    assert finding == f"turn:x went back to an older version of row {versions[0]['id']}"


def changes_of_one_turn(told: list[Transaction]) -> list[Change]:
    """All changes of a turn that has at least two versions."""
    of_turn: dict[str, list[Change]] = defaultdict(list)
    for transaction in told:
        for change in transaction.changes:
            if change.table == "public.turns" and change.new is not None and not change.unchanged:
                of_turn[str(change.new["id"])].append(change)
    return next(changes for changes in of_turn.values() if len(changes) > 1)


def test_every_moment_of_a_healthy_run_is_restored_as_it_was(evidence: Evidence) -> None:
    compared, findings = evidence.check_restores(evidence.moments)
    assert findings == []
    assert compared > 0


def test_a_moment_that_is_restored_otherwise_is_found(evidence: Evidence) -> None:
    first, last = evidence.moments[0], evidence.moments[-1]
    assert first.digests != last.digests
    _, findings = evidence.check_restores([replace(last, digests=first.digests)])
    assert "public.turns differs" in findings[0]


def test_a_moment_that_cannot_be_restored_is_found(evidence: Evidence) -> None:
    _, findings = evidence.check_restores([replace(evidence.moments[0], lsn=2**62, read_upto=2**62)])
    assert "cannot be restored" in findings[0]


@pytest.mark.wide
def test_as_a_process_of_its_own_it_judges_a_run_and_finds_what_is_planted(
    installed: str, redis_url: str, s3: S3Server, make_service: MakeService
) -> None:
    service = make_service(
        installed,
        "s3://archive/looked-at",
        redis_url,
        archive={"endpoint_url": s3.endpoint_url},
        postgres={"slot": "looked_at"},
        environment=s3.environment,
    )
    where = f"--dsn {installed} --slot looked_at --archive s3://archive/looked-at --endpoint {s3.endpoint_url}"
    arguments = where.split()
    full = f"{where} --cache {redis_url} --config {service.config_file} --moments 6 --pause-s 0.3".split()
    environment = {**os.environ, **s3.environment}
    with (
        CheckerProcess(*full, environment=environment) as checker,
        CheckerProcess(*arguments, environment=environment) as other,
    ):
        service.start().wait_until_caught_up(installed)
        Workload(installed, seed=6, rate=100, large_rows=300).run_for(2.5)
        service.wait_until_caught_up(installed)
        assert service.stop() == 0
        verdict = checker.verdict()
        assert verdict.findings == [], str(verdict)
        looked = ("transactions", "acknowledgement_samples", "cache_reads", "restores")
        assert all(verdict.figures[name] > 0 for name in looked), verdict.figures
        s3.delete_object(max(key for key in s3.objects() if "/log/" in key))
        assert other.verdict().findings


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
