"""`cdc run` and the commands beside it, as an operator meets them from the first day to the last."""

import json
import signal
from pathlib import Path

import psycopg
import redis

from tests.support.cdc_process import Command


def say(database: str, *contents: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        for content in contents:
            connection.execute(
                "INSERT INTO turns (domain, channel, session_hash, role, content) VALUES ('d', 'c', 's', 'user', %s)",
                [content],
            )


def is_well(cdc: Command) -> bool:
    return cdc("status").returncode == 0


def archived(cdc: Command) -> int:
    return int(cdc.facts("status")["archive"]["transactions"] or 0)


def test_from_the_first_run_to_the_teardown(cdc: Command, database: str, redis_url: str, slot: str) -> None:
    say(database, "before")
    with cdc.running() as service:
        cdc.wait_until(lambda: is_well(cdc))
        say(database, "one", "two", "three")
        cdc.wait_until(lambda: archived(cdc) == 3)
        assert is_well(cdc), cdc("status").stdout
        assert "is read by pid" in cdc("doctor").stdout

        refused = cdc("teardown", "--yes")
        assert refused.returncode == 1
        assert "in use by pid" in refused.stderr
        assert "stop `cdc run` first" in refused.stderr

        service.send_signal(signal.SIGTERM)
        assert service.wait(60) == 0, cdc.log
        assert service.stdout is not None
        assert service.stdout.read() == b""
    assert all(json.loads(line)["event"] for line in cdc.log.splitlines())

    stopped = cdc("status")
    assert stopped.returncode == 1
    assert f"nobody reads slot {slot}" in stopped.stdout

    segments = [json.loads(line) for line in cdc("archive", "ls", "--json").stdout.splitlines()]
    assert [segment["seq"] for segment in segments] == list(range(len(segments)))
    assert {"fence", "snapshot", "data"} <= {segment["kind"] for segment in segments}
    assert "snapshot" in cdc("archive", "ls").stdout

    lines = [json.loads(line) for line in cdc("archive", "cat", "--table", "public.turns").stdout.splitlines()]
    assert [line["after"]["content"] for line in lines] == ["one", "two", "three"]
    assert cdc("archive", "cat", "--table", "public.outbox").stdout == ""

    report = cdc.facts("archive", "verify")
    assert (report["intact"], report["transactions"], report["base_rows"]) == (True, 3, 1)
    again = cdc.facts("archive", "verify")
    assert (again["segments_read"], again["after"]["seq"], again["last_seq"]) == (0, *[report["last_seq"]] * 2)
    assert cdc.facts("archive", "verify", "--full")["segments_read"] == report["segments"]
    assert "read nothing new; up to segment" in cdc("archive", "verify").stdout
    assert cdc.facts("status")["archive"]["proofs"]["verify"]["lsn"] == report["covered_upto"]
    assert "verified up to" in cdc("status").stdout

    with redis.Redis.from_url(redis_url) as client:
        assert client.zcard("session:s:turns") == 4
        client.set("somebody:elses", "key")
        torn_down = cdc("teardown", "--yes", "--cache")
        assert torn_down.returncode == 0, torn_down.stderr
        assert client.keys() == [b"somebody:elses"]

    gone = cdc("status")
    assert gone.returncode == 78
    assert "a person must decide" in gone.stdout


def test_a_damaged_archive_is_exit_code_1_and_named(cdc: Command, database: str, archive_dir: str) -> None:
    with cdc.running():
        cdc.wait_until(lambda: is_well(cdc))
        say(database, "one", "two")
        cdc.wait_until(lambda: archived(cdc) == 2)
    (segment, *_) = sorted(Path(archive_dir.removeprefix("file://")).glob("log/*.zst"))
    segment.chmod(0o644)
    segment.write_bytes(segment.read_bytes()[:-3])
    done = cdc("archive", "verify")
    assert done.returncode == 1
    assert "NOT INTACT" in done.stdout
    assert segment.name in done.stdout
    assert "the archive was found damaged" in cdc("status").stdout


def test_the_archive_of_another_database_is_for_a_person(cdc: Command, database: str, slot: str) -> None:
    with cdc.running():
        cdc.wait_until(lambda: is_well(cdc))
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SELECT pg_logical_emit_message(false, 'x', 'y')")
        connection.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", [slot])
    done = cdc("status")
    assert done.returncode == 78
    assert "Postgres has forgotten what the archive lacks" in done.stdout
