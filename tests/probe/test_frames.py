"""The probe's watch on live hardware frames, event by event."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

FRAME, BELOW = 0xFFFFFFFF80300FD8, 0xFFFFFFFF80300E00
WORDS = (0x401000, 0x33, 0x246, 0x7FFE00, 0x2B)
REGISTER = 0x1234
CR3 = 0x293C000
RSP_WORD = FRAME + 24
CHANGES = 16

Follow = Callable[[Iterable[str]], list[int]]


@pytest.fixture(scope="module")
def follow(compiled: Callable[..., Path]) -> Follow:
    program = compiled("frame_lines.c")

    def run(lines: Iterable[str]) -> list[int]:
        done = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=True, timeout=20)
        return [int(line, 16) for line in done.stdout.split()]

    return run


def push(frame: int = FRAME, words: tuple[int, ...] = WORDS, mode: int = 64) -> str:
    return f"push {frame:x} {mode:x} {len(words):x} {REGISTER:x} {CR3:x} " + " ".join(f"{word:x}" for word in words)


def pop(
    words: tuple[int, ...] = WORDS, register: int = REGISTER, frame: int = FRAME, mode: int = 64, cr3: int = CR3
) -> str:
    row = f"pop {frame:x} {mode:x} {words[1]:x} {register:x} {cr3:x} "
    return row + " ".join(f"{word:x}" for word in (*words, 0, 0)[:5])


def store(address: int = RSP_WORD, value: int = 0x10, size: int = 8, rsp: int = BELOW) -> str:
    return f"store {address:x} {value:x} {size:x} {rsp:x}"


def changed(at: int, value: int) -> tuple[int, ...]:
    return (*WORDS[:at], value, *WORDS[at + 1 :])


def test_a_frame_popped_in_place(follow: Follow) -> None:
    user, kernel = changed(3, 0x10), (WORDS[0], 0x10, *WORDS[2:])
    fixed_up = (0x402000, *kernel[1:])
    assert follow([push(), pop()]) == [0]
    assert follow([push(), pop(user)]) == [1]
    assert follow([push(), pop(user, REGISTER + 1)]) == [0], "a signal, a call that was made anew"
    assert follow([push(words=kernel), pop(fixed_up)]) == [0], "an exception that was fixed up"
    assert follow([push(), pop(changed(0, 0x402000))]) == [1]
    assert follow([push(), pop(), pop(user)]) == [0, 0], "popped already"
    assert follow([push(), pop(user, frame=FRAME - 64)]) == [0]
    assert follow([push(), pop(user, cr3=CR3 + 0x1000)]) == [0], "another process, that leaves from there, too"
    assert follow([push(), pop(user, cr3=CR3 | 5)]) == [1], "by another PCID"
    assert follow([push(), pop(changed(1, 0x10), cr3=CR3 + 0x1000)]) == [1], "that is kernel code, and has none"


def test_a_frame_is_no_return_address(follow: Follow) -> None:
    """Code that saves an interrupted context from where its frame lies has not been called."""
    stand = f"stand {FRAME:x} " + " ".join(f"{word:x}" for word in WORDS[:3])
    elsewhere = f"stand {FRAME:x} " + " ".join(f"{word + 1:x}" for word in WORDS[:3])
    assert follow([stand, push(), stand, elsewhere, pop(), stand]) == [0, 1, 0, 0, 0]


def test_stores_into_a_live_frame(follow: Follow) -> None:
    assert follow([store(), push(), store(), store(FRAME + 40), store(FRAME - 8)]) == [0, FRAME, 0, 0]
    assert follow([push(), store(value=WORDS[3])]) == [0], "it changes nothing"
    assert follow([push(), store(RSP_WORD + 2, 0, 2), store(FRAME - 4, 0, 8)]) == [FRAME, 0]
    assert follow([push(), pop(), store()]) == [0, 0]


def test_what_an_exit_pushes_where_the_frame_was(follow: Follow) -> None:
    """It was copied, and the stack is used anew: what comes later is no change of it either."""
    assert follow([push(), store(FRAME + 32, 0x23, rsp=FRAME + 40), store()]) == [0, 0]
    assert follow([push(), store(FRAME, 0x23, rsp=FRAME), store()]) == [0, 0]
    assert follow([push(), store(FRAME + 32, WORDS[4], rsp=FRAME + 40), store()]) == [0, FRAME]


def test_a_frame_left_behind_is_given_up(follow: Follow) -> None:
    told = follow([push(), *(store(value=value) for value in range(1, CHANGES + 4)), push(), store()])
    assert told == [FRAME] * CHANGES + [0] * 3 + [FRAME]


@pytest.mark.parametrize("words", [3, 5])
def test_ia32(follow: Follow, words: int) -> None:
    frame, values = 0xC0300FEC, (0x8049000, 0x73, 0x246, 0xBFFFFE00, 0x7B)[:words]
    lines = [push(frame, values, 32), store(frame + 8, 0x10, 4, 0xC0300E00), store(frame + 12, 0x10, 4, 0xC0300E00)]
    assert follow(lines) == [frame, frame if words == 5 else 0]
    wrong = (*values[:2], 0x202, *values[3:])
    assert follow([push(frame, values, 32), pop(wrong, frame=frame, mode=32)]) == [1]
