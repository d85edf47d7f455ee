"""From an observation to a forecast, a reason and a warning, without any server."""

import dataclasses
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.cli.slot_table import lines
from cdc.monitor.forecast import Disk, Forecast, forecast, note
from cdc.monitor.meter import Meter
from cdc.monitor.report import Report, report, slot_facts
from cdc.position import Epoch
from cdc.postgres.observation import Hidden, Observation, OpenTransaction, Reader, WatchedSlot
from cdc.postgres.slot import Slot

MIB = 1024 * 1024
GIB = 1024 * MIB
NOW = datetime(2026, 11, 22, 2, 30, tzinfo=UTC).timestamp()
FOUR = NOW - 16 * 60  # 02:14
RATE = 4 * MIB


def slot(
    *, retained: int = GIB, unacknowledged: int | None = None, pid: int | None = None, **changed: Any
) -> WatchedSlot:
    """A logical slot of somebody's at `NOW`, read by `pid`."""
    wal_lsn = 100 * GIB
    facts: dict[str, Any] = {
        "name": "theirs",
        "plugin": "pgoutput",
        "database": "chat",
        "temporary": False,
        "active_pid": pid,
        "restart_lsn": wal_lsn - retained,
        "confirmed_flush_lsn": wal_lsn - (retained if unacknowledged is None else unacknowledged),
        "wal_status": "reserved",
        "safe_wal_size": None,
        "two_phase": False,
        "conflicting": False,
        "invalidation_reason": None,
        "inactive_since": None if pid else datetime.fromtimestamp(FOUR, UTC),
        "failover": False,
        "synced": False,
    }
    kind = changed.pop("kind", "logical")
    reader = None if pid is None else Reader(pid, "reader", "role", "active", "streaming", None, None, None, None)
    return WatchedSlot(Slot(**(facts | changed)), kind, None, 10, reader, None)


def seen(*slots: WatchedSlot, **changed: Any) -> Observation:
    facts: dict[str, Any] = {
        "at": NOW,
        "epoch": Epoch("7", 1),
        "in_recovery": False,
        "server_version": "18.0",
        "role": "cdc",
        "backend_pid": 1,
        "wal_lsn": 100 * GIB,
        "checkpoint_lsn": 100 * GIB - 100 * RATE,
        "checkpoint_at": NOW - 100,
        "keep_bytes": math.inf,
        "wal_keep_bytes": 0,
        "max_wal_bytes": GIB,
        "wal_dir_bytes": None,
        "data_directory": None,
        "slots": slots,
        "transactions": (),
        "hidden": (),
    }
    return Observation(**(facts | changed))


def expect(watched: WatchedSlot, *, disk: Disk | None = None, **changed: Any) -> Forecast:
    """What is expected after one look, WAL growing by `RATE` since the last checkpoint."""
    observation, meter = seen(watched, **changed), Meter()
    note(meter, observation)
    return forecast(watched, observation, disk, meter)


def told(watched: WatchedSlot, *, ours: str = "cdc", disk: Disk | None = None, **changed: Any) -> Report:
    return report(seen(watched, **changed), disk, Meter(), ours)


def writing(since_: float | None = FOUR, **changed: Any) -> OpenTransaction:
    facts: dict[str, Any] = {"pid": 4711, "gid": None, "database": "chat", "role": "app", "application_name": "app"}
    facts |= {"state": "idle in transaction", "since": since_, "xid_age": 5, "xmin_age": 5}
    return OpenTransaction(**(facts | changed))


# When ----------------------------------------------------------------------------------------------------------------


def test_a_slot_that_nobody_reads_fills_what_it_may_retain_at_the_rate_of_the_wal() -> None:
    found = expect(slot(safe_wal_size=3 * GIB), keep_bytes=4 * GIB)
    assert found.limit == "max_slot_wal_keep_size"
    assert found.seconds == pytest.approx(3 * GIB / RATE)


def test_what_postgres_does_not_say_is_reckoned_from_the_settings() -> None:
    assert expect(slot(retained=GIB), keep_bytes=4 * GIB).seconds == pytest.approx(3 * GIB / RATE)
    assert expect(slot(retained=GIB), keep_bytes=GIB, wal_keep_bytes=5 * GIB).seconds == pytest.approx(4 * GIB / RATE)


def test_without_a_limit_the_disk_is_the_limit_and_without_a_disk_there_is_none() -> None:
    found = expect(slot(), disk=Disk(2 * GIB, 10 * GIB))
    assert found.limit == "disk"
    assert found.seconds == pytest.approx(2 * GIB / RATE)
    assert (expect(slot()).limit, expect(slot()).seconds) == ("none", math.inf)


def test_the_disk_counts_where_it_is_full_before_the_limit_is_reached() -> None:
    found = expect(slot(safe_wal_size=50 * GIB), keep_bytes=51 * GIB, disk=Disk(2 * GIB, 10 * GIB))
    assert found.limit == "disk"


def test_a_lost_slot_is_never_lost_again_and_retains_infinitely_much() -> None:
    lost = slot(restart_lsn=None, wal_status="lost", invalidation_reason="wal_removed")
    found = expect(lost, keep_bytes=GIB, disk=Disk(0, GIB))
    assert (found.seconds, found.limit, found.reason) == (math.inf, "none", "its WAL is gone (wal_removed)")
    facts = slot_facts(lost, told(lost, keep_bytes=GIB))
    assert (facts["lost"], facts["retained_bytes"], facts["lag_bytes"]) == (True, None, None)
    assert facts["forecast"]["seconds"] is None
    assert lost.retained_bytes(1) == lost.unacknowledged_bytes(1) == math.inf


def test_a_slot_on_the_brink_has_no_time_left() -> None:
    assert expect(slot(wal_status="unreserved", safe_wal_size=-5), keep_bytes=GIB).seconds == 0


def test_a_physical_slot_that_was_never_used_retains_nothing_whatever_it_says_is_safe() -> None:
    fresh = slot(kind="physical", plugin=None, restart_lsn=None, confirmed_flush_lsn=None, wal_status=None)
    odd = dataclasses.replace(fresh, slot=dataclasses.replace(fresh.slot, safe_wal_size=-100))
    found = expect(odd, keep_bytes=GIB)
    assert (found.seconds, found.limit, odd.retained_bytes(5)) == (math.inf, "none", 0)
    assert told(odd, keep_bytes=GIB).warnings(1e9) == []


def test_a_reader_that_is_not_far_behind_is_healthy_at_first_sight() -> None:
    found = expect(slot(pid=1, retained=20 * MIB, unacknowledged=MIB), keep_bytes=4 * GIB)
    assert (found.seconds, found.reason) == (math.inf, None)


@given(
    st.integers(0, 2**50),
    st.integers(0, 2**40),
    st.one_of(st.none(), st.integers(0, 2**50)),
    st.one_of(st.just(math.inf), st.integers(0, 2**50)),
    st.sampled_from(["reserved", "extended", "unreserved", "lost"]),
    st.booleans(),
)
def test_a_forecast_is_a_time_and_never_nan(
    retained: int, wal: int, free: int | None, keep: float, status: str, read: bool
) -> None:
    disk = None if free is None else Disk(free, 2**50)
    watched = slot(retained=retained, pid=7 if read else None, wal_status=status)
    found = expect(watched, disk=disk, keep_bytes=keep, checkpoint_lsn=100 * GIB - wal)
    assert found.seconds >= 0
    assert (found.limit == "none") == (status == "lost" or (math.isinf(keep) and disk is None))
    assert not math.isnan(found.growth_bytes_per_s)


@given(st.integers(1, 2**40), st.integers(1, 2**40))
def test_more_room_is_more_time(one: int, other: int) -> None:
    less, more = sorted((one, other))
    sooner, later = (expect(slot(safe_wal_size=room), keep_bytes=GIB).seconds for room in (less, more))
    assert sooner <= later


# Why -----------------------------------------------------------------------------------------------------------------


def test_nobody_reads_it() -> None:
    assert expect(slot()).reason == "nobody reads it since 02:14 UTC"
    assert expect(slot(inactive_since=None)).reason == "nobody reads it"


def test_an_open_transaction_pins_it() -> None:
    held = slot(pid=1, retained=12 * GIB, unacknowledged=MIB)
    found = expect(held, transactions=(writing(),), keep_bytes=20 * GIB)
    assert found.reason == "open transaction of pid 4711 since 02:14 UTC pins 12 GB"
    assert found.seconds == pytest.approx(8 * GIB / RATE)
    hidden = expect(held, transactions=(writing(None),), keep_bytes=20 * GIB)
    assert hidden.reason == "open transaction of pid 4711 pins 12 GB"


def test_a_prepared_transaction_pins_it_and_the_hint_ends_it() -> None:
    prepared = writing(pid=None, gid="it's 17", state="prepared")
    found = told(slot(pid=1, retained=12 * GIB, unacknowledged=0), transactions=(prepared,), keep_bytes=13 * GIB)
    (warning,) = found.warnings(3600)
    assert "prepared transaction 'it's 17' since 02:14 UTC pins 12 GB" in warning.message
    assert warning.hint.startswith("ROLLBACK PREPARED 'it''s 17';")


@pytest.mark.parametrize(
    "innocent", [writing(NOW - 5), writing(xid_age=None)], ids=["began just now", "has written nothing"]
)
def test_not_every_open_transaction_is_to_blame(innocent: OpenTransaction) -> None:
    found = expect(slot(pid=1, retained=12 * GIB, unacknowledged=MIB), transactions=(innocent,), keep_bytes=20 * GIB)
    assert found.reason is None


def test_a_slot_that_is_being_created_waits_for_the_open_transaction() -> None:
    watched = slot(pid=1, retained=MIB, confirmed_flush_lsn=None)
    found = expect(watched, transactions=(writing(NOW - 5),), keep_bytes=GIB)
    assert found.reason == "open transaction of pid 4711 since 02:29 UTC delays its creation"
    assert watched.unacknowledged_bytes(100 * GIB) == MIB


def test_the_reader_is_slower_than_the_wal() -> None:
    meter = Meter()
    for step in (1, 0):
        lsn = 100 * GIB - step * 10 * RATE
        behind = slot(pid=1, confirmed_flush_lsn=98 * GIB - step * MIB * 10, restart_lsn=98 * GIB - step * MIB * 10)
        observation = seen(behind, at=NOW - 10 * step, wal_lsn=lsn, keep_bytes=8 * GIB)
        note(meter, observation)
    found = forecast(behind, observation, None, meter)
    assert found.reason == "the reader acknowledges 3.0 MB/s slower than WAL grows"
    assert found.seconds == pytest.approx(6 * GIB / (3 * MIB))


# What somebody should do ----------------------------------------------------------------------------------------------


def test_a_strangers_slot_that_nobody_drains_is_a_warning_and_ours_is_not() -> None:
    found = told(slot(), disk=Disk(100 * GIB, 200 * GIB))
    (warning,) = found.warnings(60)
    expected = "slot theirs, not ours, is read by nobody since 02:14 UTC and retains 1.0 GB of WAL"
    assert warning.message == expected
    assert warning.hint.startswith("SELECT pg_drop_replication_slot('theirs');")
    assert found.reasons == []
    assert told(slot(), ours="theirs", disk=Disk(100 * GIB, 200 * GIB)).warnings(60) == []
    (near,) = found.warnings(1e6)
    assert near.message == f"{expected}, and fills the disk in 7.1 h"


def test_a_standbys_copy_of_a_slot_is_kept_up_by_the_standby() -> None:
    assert told(slot(synced=True), disk=Disk(100 * GIB, 200 * GIB)).warnings(60) == []


@pytest.mark.parametrize("status", ["lost", "unreserved"])
def test_our_own_slot_on_the_brink_keeps_us_from_being_ready(status: str) -> None:
    found = told(slot(wal_status=status, safe_wal_size=0), ours="theirs", keep_bytes=GIB)
    assert [status[:4] in reason.message or "about to be lost" in reason.message for reason in found.reasons] == [True]
    assert "not ours" not in found.reasons[0].message
    other = told(slot(wal_status=status, safe_wal_size=0), keep_bytes=GIB)
    assert other.reasons == []
    assert "not ours" in other.warnings(0)[0].message


def test_no_limit_and_no_disk_is_said_as_there_is_no_forecast() -> None:
    (warning,) = told(slot(), ours="theirs").warnings(60)
    assert warning.message.startswith("there is no forecast")


def test_what_is_hidden_is_a_warning_only_where_a_reason_needs_it() -> None:
    hidden = (Hidden("transactions", "GRANT it TO cdc;", needed=True), Hidden("the size of pg_wal", "GRANT more;"))
    found = told(slot(), ours="theirs", keep_bytes=GIB * 99, hidden=hidden)
    assert [(warning.message, warning.hint) for warning in found.warnings(0)] == [
        ("role cdc may not see transactions", "GRANT it TO cdc;")
    ]


# For people -----------------------------------------------------------------------------------------------------------


def test_the_table_fits_a_hundred_columns_whatever_the_names() -> None:
    long = slot(name="a" * 63, pid=2**22, retained=1023 * GIB, invalidation_reason=None)
    named = dataclasses.replace(long, reader=Reader(2**22, "b" * 63, None, None, None, None, None, None, None))
    for watched in (long, named, slot(), slot(wal_status="lost"), slot(wal_status="unreserved", safe_wal_size=0)):
        found = told(watched, keep_bytes=1023 * GIB, transactions=(writing(),), disk=Disk(GIB, 9 * GIB))
        assert max(len(line) for line in lines(found)) <= 100
    assert "no replication slots" in list(lines(told_nothing()))


def told_nothing() -> Report:
    return report(seen(), None, Meter(), "cdc")
