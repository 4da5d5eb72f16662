"""Boots that are disturbed in different places."""

from __future__ import annotations

import pytest

from .__main__ import LATELY, Way
from .boots import Boot
from .stretches import Marks, undisturbed

FIRST: Marks = [("[    0.100000] begin", 1.0), ("tick", 1.5), ("tick", 2.0), ("[    0.5] a", 5.0), ("done", 6.0)]
SECOND: Marks = [("[    0.200000] begin", 3.0), ("[    0.9] only here", 3.5), ("[    0.7] a", 4.0), ("done", 8.0)]


def test_of_each_stretch_the_fastest_counts() -> None:
    assert undisturbed([FIRST, SECOND]) == pytest.approx(1.0 + 1.0 + 1.0)


def test_stretches_are_those_that_the_other_boots_have_too() -> None:
    assert undisturbed([FIRST, SECOND], [[("begin", 1.0), ("done", 2.0)]]) == pytest.approx(1.0 + 5.0)


def test_lines_in_another_order_end_no_stretch() -> None:
    assert undisturbed([FIRST, SECOND], [[("a", 1.0), ("begin", 2.0), ("done", 3.0)]]) == pytest.approx(1.0 + 5.0)


def test_a_line_that_comes_at_any_time_costs_itself_alone() -> None:
    early: Marks = [("any time", 0.5), ("a", 1.0), ("b", 3.0), ("c", 4.0)]
    late: Marks = [("a", 2.0), ("b", 3.0), ("c", 5.0), ("any time", 6.0)]
    assert undisturbed([early, late]) == pytest.approx(1.0 + 1.0 + 1.0)


def test_a_boot_is_as_long_as_it_was() -> None:
    assert undisturbed([FIRST]) == pytest.approx(6.0)


def test_nothing_in_common() -> None:
    assert undisturbed([FIRST], [[("other", 1.0)]]) == 0


def test_a_way_of_booting_has_settled_when_the_last_turns_changed_nothing() -> None:
    boot = Boot(3.0, 3.0, marks=(("begin", 1.0), ("done", 3.0)))
    faster = Boot(2.9, 2.9, marks=(("begin", 1.2), ("done", 2.9)))  # in its second half, by a hundredth of all and more
    way = Way("alone", lambda: boot, "alone", None, [boot] * (LATELY + 1))
    settled = [way.settled]  # one boot before the last ones is none to speak of
    for more in ([boot], [faster], [boot] * LATELY):
        way.done += more
        settled.append(way.settled)
    assert settled == [False, True, False, True]
