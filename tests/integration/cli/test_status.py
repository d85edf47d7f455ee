"""`cdc status`, `doctor`, `slots` and `teardown` before and after something is wrong, on real servers."""

import json
import signal

import psycopg
import pytest

from tests.support.cdc_process import Command, needs_postgres

NOBODY = "postgresql://postgres@127.0.0.1:1/chat"


def make_slot(database: str, slot: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])


def drop_slot(database: str, slot: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])


def test_init_may_be_repeated(cdc: Command) -> None:
    done = cdc("init")
    assert (done.returncode, done.stderr) == (0, "")
    assert "applied 01_turns.sql" in done.stdout


def test_before_the_first_run_all_is_not_well_and_the_hint_says_run(cdc: Command, slot: str) -> None:
    done = cdc("status")
    assert done.returncode == 1
    assert f"slot {slot} is not there yet" in done.stdout
    assert "hint: cdc run" in done.stdout


@pytest.mark.parametrize(
    ("broken", "subject"),
    [
        pytest.param({"CDC_POSTGRES__DSN": NOBODY}, "postgres", marks=pytest.mark.wide),
        ({"CDC_CACHE__URL": "redis://127.0.0.1:1/0"}, "cache"),
        pytest.param({"CDC_ARCHIVE__URL": "file:///dev/null/archive"}, "archive", marks=pytest.mark.wide),
    ],
)
def test_status_and_doctor_work_with_one_neighbour_away(cdc: Command, broken: dict[str, str], subject: str) -> None:
    status = cdc.facts("status", **broken)
    assert status["exit_code"] != 0
    assert subject in {trouble["subject"] for trouble in status["troubles"]}
    others = {"postgres", "archive", "cache"} - {subject}
    assert all(status[other]["reachable"] for other in others)
    findings = cdc.facts("doctor", **broken)
    assert {finding["subject"] for finding in findings if finding["level"] == "error"} == {subject}
    assert cdc("doctor", **broken).returncode == 1


def test_status_works_with_all_three_away(cdc: Command) -> None:
    broken = {"CDC_POSTGRES__DSN": NOBODY, "CDC_CACHE__URL": "redis://127.0.0.1:1/0"}
    done = cdc("status", **broken, CDC_ARCHIVE__URL="file:///dev/null/archive")
    assert done.returncode == 1
    assert "not well" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_the_doctor_finds_nothing_wrong_with_a_fresh_installation(cdc: Command) -> None:
    done = cdc("doctor")
    assert done.returncode == 0, done.stdout
    assert "publication cdc: public.outbox, public.turns" in done.stdout


def test_the_doctor_names_a_table_without_a_key_and_the_sql_that_mends_it(cdc: Command, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.bare (x int)")
        connection.execute("ALTER PUBLICATION cdc ADD TABLE public.bare")
    done = cdc("doctor")
    assert done.returncode == 1
    assert "public.bare has no usable replica identity" in done.stdout
    assert 'ALTER TABLE "public"."bare" REPLICA IDENTITY FULL' in done.stdout


def test_the_doctor_names_a_publication_that_is_not_there(cdc: Command) -> None:
    done = cdc("doctor", CDC_POSTGRES__PUBLICATION="nothing")
    assert done.returncode == 1
    assert "publication nothing does not exist" in done.stdout
    assert 'CREATE PUBLICATION "nothing"' in done.stdout


def test_slots_lists_a_slot_with_what_it_retains(cdc: Command, database: str, slot: str) -> None:
    make_slot(database, slot)
    (found,) = [found for found in cdc.facts("slots")["slots"] if found["slot"] == slot]
    assert found["active_pid"] is None
    assert found["retained_bytes"] >= 0
    assert found["lost"] is False
    assert slot in cdc("slots").stdout


def test_slots_says_of_every_slot_who_reads_it_and_when_that_hurts(cdc: Command, database: str, slot: str) -> None:
    make_slot(database, slot)
    said = cdc("slots", CDC_POSTGRES__SLOT="another").stdout.splitlines()
    (line,) = [line for line in said if line.startswith(slot)]
    assert line.split()[1:3] == ["nobody", "reserved"]
    assert said[said.index(line) + 1].startswith("    nobody reads it")
    assert any(f"slot {slot}, not ours, is read by nobody" in line for line in said)
    facts = cdc.facts("slots")
    assert [found["slot"] for found in facts["slots"] if found["ours"]] == [slot]
    assert facts["postgres"]["wal_lsn"]


def test_watched_slots_are_shown_again_and_again_until_ctrl_c(cdc: Command, database: str, slot: str) -> None:
    make_slot(database, slot)
    with cdc.started("slots", "--watch", "0.2", "--json") as process:
        assert process.stdout is not None
        looks = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert all(slot in [found["slot"] for found in look["slots"]] for look in looks)
    assert len({look["postgres"]["observed_at"] for look in looks}) == 3


def test_a_slot_beside_an_empty_archive_is_not_well(cdc: Command, database: str, slot: str) -> None:
    make_slot(database, slot)
    done = cdc("status")
    assert done.returncode == 1
    assert f"the archive is empty, but slot {slot} is there" in done.stdout


def test_teardown_asks_and_a_no_changes_nothing(cdc: Command, database: str, slot: str) -> None:
    make_slot(database, slot)
    done = cdc("teardown", stdin="n\n")
    assert done.returncode == 1
    assert f"to be removed: replication slot {slot}" in done.stdout
    assert slot in cdc("slots").stdout


def test_teardown_in_a_script_says_how_not_to_be_asked(cdc: Command, database: str, slot: str) -> None:
    make_slot(database, slot)
    done = cdc("teardown")
    assert done.returncode == 2
    assert "no answer came, so nothing was done" in done.stderr
    assert "cdc teardown --yes" in done.stderr
    assert slot in cdc("slots").stdout


def test_teardown_drops_the_slot_and_says_what_remains(cdc: Command, database: str, slot: str) -> None:
    make_slot(database, slot)
    done = cdc("teardown", "--yes")
    assert done.returncode == 0, done.stderr
    assert f"dropped slot {slot}" in done.stdout
    assert "remains: the archive" in done.stdout
    assert "remains: publication cdc (--publication)" in done.stdout
    assert slot not in cdc("slots").stdout


def test_teardown_without_a_slot_is_no_error(cdc: Command, slot: str) -> None:
    done = cdc("teardown", "--yes", "--publication", "--cache")
    assert done.returncode == 0, done.stderr
    assert f"there was no slot {slot}" in done.stdout
    assert "dropped publication cdc" in done.stdout
    assert "removed 0 keys" in done.stdout
    assert "there was no publication cdc" in cdc("teardown", "--yes", "--publication").stdout


@pytest.mark.parametrize("command", ["ls", "cat", "verify"])
def test_an_archive_that_is_not_there_is_an_error_with_its_address(
    cdc: Command, command: str, archive_dir: str
) -> None:
    done = cdc("archive", command)
    assert done.returncode == 2
    assert archive_dir in done.stderr


@pytest.mark.wide
def test_a_slot_becomes_a_failover_slot_at_the_next_run(cdc: Command, database: str, slot: str) -> None:
    needs_postgres(database, 17)
    asked = {"CDC_POSTGRES__FAILOVER": "true"}
    failover = "SELECT failover FROM pg_replication_slots WHERE slot_name = %s"
    with cdc.running():
        cdc.wait_until(lambda: cdc("status").returncode == 0)
        assert "not a failover slot yet" in cdc("doctor", **asked).stdout
    with psycopg.connect(database, autocommit=True) as connection:
        assert connection.execute(failover, [slot]).fetchone() == (False,)
        with cdc.running(**asked):
            cdc.wait_until(lambda: cdc("status").returncode == 0)
            assert connection.execute(failover, [slot]).fetchone() == (True,)
            said = cdc("doctor", **asked).stdout
            assert "is one that standbys may synchronise" in said
            assert "synchronized_standby_slots is empty" in said
        with cdc.running():
            cdc.wait_until(lambda: cdc("status").returncode == 0)
            assert connection.execute(failover, [slot]).fetchone() == (True,)
