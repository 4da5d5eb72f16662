"""Columns of rows, of some of them, and of a recording's columns: the same values, whichever way they are reached."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gdbext.events.columns import Columns, Joined, among, by_cpu, grouped
from gdbext.events.row import ROW, Batch, Kind
from gdbext.ledger.compare import contexts, crosses, is_user, keys
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
        low = rows["kind"] < 128
        for _ in range(2):  # made, and made before
            shared = columns.shared("low", lambda those: those["kind"] < 128)
            assert (shared["rip"] == rows["rip"][low]).all()
            assert (shared.gprs() == whole.gprs()[low]).all()
            assert (is_user(shared) == is_user(rows)[low]).all()
            assert (shared.pick(np.array([1, 0])) == rows[low][[1, 0]]).all()
        assert columns.shared("all", lambda those: those["kind"] < 256) is columns


def test_who_crosses_is_the_same_of_a_batch_and_of_some_of_its_rows() -> None:
    rows = _rows(100).copy()
    rows["kind"] %= 4
    crossing = np.isin(rows["kind"], (Kind.ENTRY, Kind.EXIT)) & is_user(rows)
    for columns in (Columns(rows), _apart(rows)):
        assert (contexts(columns)["seq"] == rows["seq"][np.isin(rows["kind"], (Kind.ENTRY, Kind.EXIT))]).all()
        assert (crosses(columns) == crossing).all()
        for index in (np.arange(90), np.array([3, 4, 5])):
            assert (crosses(columns.take(index)) == crossing[index]).all()


@given(st.lists(st.integers(0, 5)))
def test_groups_are_those_that_sorting_finds(values: list[int]) -> None:
    column = np.array(values, np.uint64)
    distinct, first, last, which, counts = grouped(column)
    wanted = np.unique(column, return_index=True, return_inverse=True, return_counts=True)
    for found, known in zip((distinct, first, which, counts), wanted, strict=True):
        assert found.tolist() == known.tolist()
    assert last.tolist() == [len(values) - 1 - values[::-1].index(value) for value in distinct.tolist()]


@given(st.lists(st.integers(0, 9)), st.sets(st.integers(0, 9)))
def test_what_is_among_others_is_what_a_look_at_each_finds(values: list[int], others: set[int]) -> None:
    found = among(np.array(values, np.uint64), np.array(sorted(others), np.uint64))
    assert found.tolist() == [value in others for value in values]


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
