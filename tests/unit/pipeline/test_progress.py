"""`progress` decides what Postgres may forget, so it is tested against a model of the slot and of the archive."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cdc.pipeline.progress import Progress


def test_nothing_but_the_start_is_acknowledged_before_anything_is_archived() -> None:
    progress = Progress(100)
    progress.received(end_lsn=200, server_lsn=200, in_transaction=False)
    assert progress.acknowledged_lsn == 100


def test_an_archived_transaction_is_acknowledged_by_its_end_lsn() -> None:
    progress = Progress(100)
    progress.received(end_lsn=200, server_lsn=0, in_transaction=False)
    progress.archived(200)
    assert progress.acknowledged_lsn == 200


def test_a_keepalive_is_not_coverable_while_a_transaction_waits_for_the_archive() -> None:
    progress = Progress(100)
    progress.received(end_lsn=200, server_lsn=300, in_transaction=False)
    assert progress.coverable_lsn is None
    progress.archived(200)
    assert progress.coverable_lsn == 300


def test_a_keepalive_is_not_coverable_inside_a_transaction() -> None:
    progress = Progress(100)
    progress.received(end_lsn=0, server_lsn=300, in_transaction=True)
    assert progress.coverable_lsn is None


def test_a_keepalive_alone_is_never_acknowledged() -> None:
    progress = Progress(100)
    progress.received(end_lsn=0, server_lsn=300, in_transaction=False)
    assert progress.acknowledged_lsn == 100
    progress.archived(300)
    assert progress.acknowledged_lsn == 300
    assert progress.coverable_lsn is None


def test_the_acknowledged_position_never_goes_back() -> None:
    progress = Progress(100)
    progress.archived(300)
    progress.archived(200)
    assert progress.acknowledged_lsn == 300


class SlotModel(RuleBasedStateMachine):
    """A server that sends transactions and keepalives in order, and an archive that stores a prefix of them."""

    def __init__(self) -> None:
        super().__init__()
        self.progress = Progress(100)
        self.wal = 100
        self.sent: list[int] = []
        self.stored: list[int] = []
        self.open = False

    @precondition(lambda self: not self.open)
    @rule(size=st.integers(1, 50))
    def begin(self, size: int) -> None:
        self.wal += size
        self.open = True
        self.progress.received(0, 0, True)

    @precondition(lambda self: self.open)
    @rule(size=st.integers(1, 50))
    def commit(self, size: int) -> None:
        self.wal += size
        self.open = False
        self.sent.append(self.wal)
        self.progress.received(self.wal, 0, False)

    @precondition(lambda self: not self.open)
    @rule(size=st.integers(0, 50))
    def keepalive(self, size: int) -> None:
        self.wal += size
        self.progress.received(0, self.wal, False)

    @precondition(lambda self: len(self.stored) < len(self.sent))
    @rule(data=st.data())
    def archive_some(self, data: st.DataObject) -> None:
        upto = data.draw(st.integers(len(self.stored) + 1, len(self.sent)))
        self.stored = self.sent[:upto]
        self.progress.archived(self.stored[-1])

    @rule()
    def cover(self) -> None:
        if (lsn := self.progress.coverable_lsn) is not None:
            self.progress.archived(lsn)

    @invariant()
    def everything_acknowledged_is_stored(self) -> None:
        acknowledged = self.progress.acknowledged_lsn
        assert [lsn for lsn in self.sent if lsn <= acknowledged] == [lsn for lsn in self.stored if lsn <= acknowledged]

    @invariant()
    def the_acknowledged_position_was_received(self) -> None:
        assert self.progress.acknowledged_lsn <= max(self.wal, 100)


TestSlotModel = SlotModel.TestCase
TestSlotModel.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
