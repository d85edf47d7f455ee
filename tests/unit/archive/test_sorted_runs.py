"""Sorting outside of memory: whatever is added comes back sorted, however small the memory, and no file is left."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.archive.state.sorted_runs import Entry, Sorter

entries = st.lists(st.tuples(st.binary(max_size=6), st.binary(max_size=12)), max_size=400)


@given(entries, st.sampled_from([1, 500, 5_000, 10_000_000]))
def test_what_is_added_comes_back_sorted_by_key_and_order(said: list[tuple[bytes, bytes]], memory_bytes: int) -> None:
    added = [Entry(key, order, value) for order, (key, value) in enumerate(said)]
    with Sorter(memory_bytes) as sorter:
        runs, others = sorter.new_runs(), sorter.new_runs()
        for entry in added:
            runs.add(entry)
            others.add(entry)
        assert list(runs) == sorted(added)
        assert list(others) == sorted(added)


def test_many_runs_become_few_files_and_all_go_with_the_sorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Sorter(memory_bytes=1) as sorter:
        runs = sorter.new_runs()
        for order in range(1000):
            runs.add(Entry(b"%d" % (order * 7919 % 1000), order, b""))
        files = list(tmp_path.glob("waltier-*/*.run"))
        assert 0 < len(files) < 50
        assert [entry.key for entry in runs] == sorted(b"%d" % number for number in range(1000))
    assert list(tmp_path.iterdir()) == []


def test_a_closed_sorter_makes_no_new_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sorter = Sorter(memory_bytes=1)
    runs = sorter.new_runs()
    sorter.close()
    runs.add(Entry(b"key", 1, b"value"))
    with pytest.raises(OSError, match="closed"):
        runs.spill()
    assert list(tmp_path.iterdir()) == []
