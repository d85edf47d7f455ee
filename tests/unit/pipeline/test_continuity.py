import pytest

from cdc.change import Transaction
from cdc.errors import Diverged
from cdc.pipeline.continuity import Continuity, is_due
from cdc.position import check_wal_end

LAST = 500


def commits(*commit_lsns: int) -> list[Transaction]:
    return [Transaction(1, lsn, 0, [], end_lsn=lsn + 20) for lsn in commit_lsns]


def pieces(commit_lsn: int) -> list[Transaction]:
    return [Transaction(1, commit_lsn, 0, [], last=False), Transaction(1, commit_lsn, 0, [], end_lsn=commit_lsn + 20)]


@pytest.mark.parametrize("received", [commits(LAST), commits(400, LAST), commits(LAST, 600), pieces(LAST)])
def test_the_last_commit_comes_again_and_all_is_well(received: list[Transaction]) -> None:
    continuity = Continuity(LAST)
    continuity.check(received, 10_000)
    assert not continuity.pending
    continuity.check(commits(700), 10_000)


def test_it_may_come_after_any_number_of_reads() -> None:
    continuity = Continuity(LAST)
    for lsn in (100, 200, 300):
        continuity.check(commits(lsn), lsn + 20)
        assert continuity.pending
    continuity.check([], LAST)  # a keepalive that was sent just before it
    continuity.check(commits(LAST), LAST + 20)
    assert not continuity.pending


@pytest.mark.parametrize("received", [commits(501), commits(400, 499, 600), pieces(600)])
@pytest.mark.parametrize("wal_end", [0, 10_000])
def test_another_commit_in_its_place_is_another_history(received: list[Transaction], wal_end: int) -> None:
    continuity = Continuity(LAST)
    with pytest.raises(Diverged, match="set back") as raised:
        continuity.check(received, wal_end)
    assert "0/1F4" in raised.value.detail
    assert "cdc teardown --cache --yes" in raised.value.hint
    assert continuity.pending


def test_nothing_in_its_place_is_another_history_too() -> None:
    continuity = Continuity(LAST)
    continuity.check(commits(400), 0)  # inside a transaction nobody knows how far it goes
    with pytest.raises(Diverged, match="set back"):
        continuity.check([], LAST + 1)


def test_nothing_is_asked_for_where_nothing_is_due() -> None:
    continuity = Continuity(0)
    assert not continuity.pending
    continuity.check(commits(950), 1000)


@pytest.mark.parametrize(
    ("confirmed_lsn", "last_lsn", "due"),
    [(400, LAST, True), (LAST, LAST, True), (LAST + 1, LAST, False), (900, LAST, False), (16, 0, False)],
)
def test_a_slot_sends_again_what_commits_at_or_after_the_place_that_it_confirmed(
    confirmed_lsn: int, last_lsn: int, due: bool
) -> None:
    assert is_due(last_lsn, confirmed_lsn) is due


def test_where_a_fork_cut_the_archive_off_there_is_no_commit() -> None:
    assert not is_due(480, 400, {1: 200, 2: 480}.values())
    assert is_due(470, 400, {1: 200, 2: 480}.values())


def test_the_wal_goes_as_far_as_the_archive() -> None:
    check_wal_end(520, 520)
    with pytest.raises(Diverged, match="set back"):
        check_wal_end(519, 520)
