"""Columns of rows, of some of them, and of a recording's columns: the same values, whichever way they are reached."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gdbext.events.columns import Columns, Joined, by_cpu, grouped
from gdbext.events.row import ROW, Batch
from gdbext.ledger.compare import keys
from gdbext.ledger.pairing import adjacent
from gdbext.recording.apart import Apart, joined


def _rows(count: int) -> Batch:
    """Rows whose every byte is arbitrary."""
    return np.frombuffer(np.random.default_rng(count).bytes(count * ROW.itemsize), ROW)


def _apart(rows: Batch) -> Apart:
    return Apart(ROW, {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names or ()})


def test_columns_that_were_never_rows_hold_what_the_rows_hold() -> None:
    rows = _rows(100)
    whole = Columns(rows)
    apart, parts = _apart(rows), joined([_apart(rows[:40]), _apart(rows[40:70]), _apart(rows[70:])])
    some, few = np.arange(99, 3, -1), np.array([7, 70])
    for columns in (apart, parts, joined([parts, Columns(rows[:0])]), Joined(rows[:3], Columns(rows[3:]))):
        for index in (some, few):
            taken = columns.take(index)
            assert (taken.pick(np.array([1, 0])) == rows[index[[1, 0]]]).all()
            assert (taken.row(1) == rows[index[1]]).all()
            assert (taken.gprs() == whole.gprs()[index]).all()
            assert (taken["stack"] == rows["stack"][index]).all()
            assert (keys(taken) == keys(rows)[index]).all()
        assert (columns.rows == rows).all()


@given(st.lists(st.integers(0, 5)))
def test_groups_are_those_that_sorting_finds(values: list[int]) -> None:
    column = np.array(values, np.uint64)
    for found, wanted in zip(
        grouped(column),
        np.unique(column, return_index=True, return_inverse=True, return_counts=True),
        strict=True,
    ):
        assert found.tolist() == wanted.tolist()


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans())))
def test_an_exit_is_adjacent_to_the_entry_of_its_key_that_came_last(events: list[tuple[int, bool]]) -> None:
    last: dict[int, int | None] = {}
    wanted = set()
    for at, (key, is_exit) in enumerate(events):
        before = last.get(key)
        if is_exit and before is not None:
            wanted.add((before, at))
        last[key] = None if is_exit else at
    keys = np.array([key for key, _ in events], np.uint64)
    before_, behind = adjacent(keys, np.array([is_exit for _, is_exit in events], bool))
    assert set(zip(before_.tolist(), behind.tolist(), strict=True)) == wanted


def test_rows_are_told_apart_by_vcpu() -> None:
    rows = _rows(10).copy()
    rows["cpu"] = [0, 1, 0, 2, 1, 0, 0, 2, 2, 1]
    assert {cpu: mine.tolist() for cpu, (mine, _) in by_cpu(Columns(rows)).items()} == {
        0: [0, 2, 5, 6],
        1: [1, 4, 9],
        2: [3, 7, 8],
    }
    assert by_cpu(Columns(rows[:0])) == {}
