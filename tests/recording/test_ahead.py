"""What is made ahead comes in order, with its errors, and leaves no thread behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from gdbext.recording.ahead import ahead


def _making(made: list[int], count: int, error: bool = False) -> Iterator[int]:
    for number in range(1, count + 1):
        made.append(number)
        yield number
    if error:
        raise ValueError("the rest is missing")


def test_the_same_things_in_the_same_order() -> None:
    assert list(ahead(_making([], 100))) == list(range(1, 101))
    assert list(ahead(iter(()))) == []


def test_one_is_made_in_another_thread_while_the_last_is_used() -> None:
    making = threading.Event()

    def things() -> Iterator[str]:
        yield "first"
        making.set()
        yield threading.current_thread().name

    some = ahead(things())
    assert next(some) == "first"
    assert making.wait(30)  # nobody has asked for the second one
    assert next(some) != threading.current_thread().name


def test_an_error_comes_where_it_would_have_come() -> None:
    some = ahead(_making([], 2, error=True))
    assert [next(some), next(some)] == [1, 2]
    with pytest.raises(ValueError, match="rest is missing"):
        next(some)


def test_who_stops_early_leaves_no_thread() -> None:
    made: list[int] = []
    some = ahead(_making(made, 100))
    assert next(some) == 1
    some.close()  # type: ignore[attr-defined]
    assert len(made) <= 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
