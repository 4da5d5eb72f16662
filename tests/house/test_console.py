"""Lines out of bytes as they come."""

from __future__ import annotations

from gdbext.qemu.console import LONGEST_LINE, Console


class Tube:
    """Gives the chunks one by one, then nothing, then its end."""

    def __init__(self, *chunks: bytes, end: bool = False) -> None:
        self.chunks, self.end = list(chunks), end

    def recv(self, numb: int, timeout: float) -> bytes:
        if self.chunks:
            return self.chunks.pop(0)
        if self.end:
            raise EOFError
        return b""


def test_lines_are_whole() -> None:
    console = Console(Tube(b"one\r\ntw", b"o\nthr"))
    assert console.lines() == ["one"]
    assert console.lines() == ["two"]
    assert console.lines() == []
    assert console.partial == "thr"


def test_the_rest_comes_at_the_end() -> None:
    console = Console(Tube(b"last words", end=True))
    assert console.lines() == []
    assert console.lines() == ["last words"]
    assert console.closed
    assert console.lines() == []


def test_a_character_may_be_cut() -> None:
    console = Console(Tube(b"\xe2\x86", b"\x92\n"))
    assert console.lines() == []
    assert console.lines() == ["→"]


def test_bad_bytes_do_not_stop_it() -> None:
    assert Console(Tube(b"\xff\x00ok\n")).lines() == ["\ufffd\x00ok"]


def test_a_line_without_end_is_broken() -> None:
    console = Console(Tube(b"x" * (2 * LONGEST_LINE + 7)))
    assert console.lines() == ["x" * LONGEST_LINE] * 2
    assert console.partial == "x" * 7
