import pytest

from cdc.archive.header import Source
from cdc.archive.tail import Tail
from cdc.change import Transaction
from cdc.errors import Diverged
from cdc.pipeline.continuity import Continuity, check_wal_end
from cdc.sink import Epoch

LAST, COVERED = 500, 520


def archive_ending_at(last_commit_lsn: int = LAST, covered_upto: int = COVERED) -> Tail:
    return Tail(
        archive="a",
        seq=9,
        sha256="",
        source=Source(epoch=Epoch("7300000000000000001", 1), database="chat"),
        last_commit_lsn=last_commit_lsn,
        covered_upto=covered_upto,
        next_ordinal=7,
        writer_epoch=1,
    )


def commits(*commit_lsns: int) -> list[Transaction]:
    return [Transaction(1, lsn, 0, [], end_lsn=lsn + 20) for lsn in commit_lsns]


def pieces(commit_lsn: int) -> list[Transaction]:
    return [Transaction(1, commit_lsn, 0, [], last=False), Transaction(1, commit_lsn, 0, [], end_lsn=commit_lsn + 20)]


@pytest.mark.parametrize("received", [commits(LAST), commits(400, LAST), commits(LAST, 600), pieces(LAST)])
def test_the_last_commit_comes_again_and_all_is_well(received: list[Transaction]) -> None:
    continuity = Continuity(400, archive_ending_at())
    continuity.check(received, 10_000)
    assert not continuity.pending
    continuity.check(commits(700), 10_000)


def test_it_may_come_after_any_number_of_reads() -> None:
    continuity = Continuity(100, archive_ending_at())
    for lsn in (100, 200, 300):
        continuity.check(commits(lsn), lsn + 20)
        assert continuity.pending
    continuity.check([], LAST)  # a keepalive that was sent just before it
    continuity.check(commits(LAST), COVERED)
    assert not continuity.pending


@pytest.mark.parametrize("received", [commits(501), commits(400, 499, 600), pieces(600)])
@pytest.mark.parametrize("wal_end", [0, 10_000])
def test_another_commit_in_its_place_is_another_history(received: list[Transaction], wal_end: int) -> None:
    continuity = Continuity(400, archive_ending_at())
    with pytest.raises(Diverged, match="set back") as raised:
        continuity.check(received, wal_end)
    assert "0/1F4" in raised.value.detail
    assert "cdc teardown --cache --yes" in raised.value.hint
    assert continuity.pending


def test_nothing_in_its_place_is_another_history_too() -> None:
    continuity = Continuity(400, archive_ending_at())
    continuity.check(commits(400), 0)  # inside a transaction nobody knows how far it goes
    with pytest.raises(Diverged, match="set back"):
        continuity.check([], LAST + 1)


@pytest.mark.parametrize(
    ("confirmed_lsn", "tail"),
    [
        (LAST + 1, archive_ending_at()),
        (COVERED, archive_ending_at()),
        (900, archive_ending_at(LAST, 900)),
        (0, archive_ending_at(0, 100)),
        (400, archive_ending_at(480, 480)),  # a fork cut the archive off at its switch point
    ],
)
def test_what_is_not_due_again_is_not_asked_for(confirmed_lsn: int, tail: Tail) -> None:
    continuity = Continuity(confirmed_lsn, tail)
    assert not continuity.pending
    continuity.check(commits(950), 1000)


def test_the_wal_goes_as_far_as_the_archive() -> None:
    check_wal_end(COVERED, COVERED)
    with pytest.raises(Diverged, match="set back"):
        check_wal_end(COVERED - 1, COVERED)
