"""Hardware watchpoints for the rules: the stores into a few ranges of memory, as rows.

QEMU dies where the CPU itself pushes a frame into a watched range (10.0: an assertion), or the interrupt is lost that
was acknowledged, and no other comes. So no range may be watched where frames land: who asks for one sees to that, and a
range into which a stack grows is given up with the first store that shows it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

import gdb

from gdbext.gdb.target import Target

Range = tuple[int, int]
"""First byte (guest virtual), and the one behind the last."""

Hit = Callable[[int, int, int], bool]
"""Called with the range and where the vCPU stands behind the store; True stops the guest for the user."""

WORDS: Final = {4: "unsigned int", 8: "unsigned long long"}
_VARIABLE: Final = "_ctx_stores"
_FRAME: Final = 64
"""Bytes below RSP that a frame takes at most: six words, and what aligns them."""
_PAGE: Final = 4096
_ODD: Final = 16
"""Bytes that no debug register can watch."""


class StorePoint(gdb.Breakpoint):  # type: ignore[misc]  # GDB's classes have no types
    """A watchpoint behind whose stores the guest goes on at once.

    GDB passes over a store that leaves what was there, but it is the last one all the same: so a word is watched as a
    sum with a variable that changes at each stop.
    """

    def __init__(self, where: Range, hit: Hit) -> None:
        start, end = where
        if end - start in WORDS:
            text = f"*({WORDS[end - start]} *){start:#x} + ${_VARIABLE}"
        else:
            text = f"*(unsigned char (*)[{end - start}]){start:#x}"
        _stir()
        super().__init__(text, gdb.BP_WATCHPOINT, gdb.WP_WRITE, internal=True)
        self.silent = True
        self._where, self._hit = where, hit

    def stop(self) -> bool:
        """Called by GDB behind the storing instruction; True stops the guest for the user."""
        _stir()
        return self._hit(*self._where, int(gdb.newest_frame().pc()))


class StorePoints:
    """All of them. ``hit`` is called at each store."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.hit: Hit = lambda _start, _end, _pc: False
        self._points: dict[Range, StorePoint] = {}
        self._given_up: set[Range] = set()
        self._able: bool | None = None

    def watch(self, ranges: Sequence[Range]) -> bool:
        """Watch these from now on, but for those given up, and no others; False if they cannot be. May be called from a
        stop."""
        for where, point in self._points.items():
            wanted = where in ranges and where not in self._given_up
            if point.is_valid() and point.enabled != wanted:
                point.enabled = wanted
        new = [where for where in ranges if where not in self._points]
        if new and not self._can(new[0][0]):
            return False
        for where in new:
            self._points[where] = StorePoint(where, self.hit)
        return True

    def give_up(self, rsp: int) -> None:
        """A vCPU that takes interrupts stands with RSP `rsp`. Where the next frame would land in a watched range, watch
        no more what this stack may reach: the page below, and the frame above. May be called from a stop."""
        watched = [where for where, point in self._points.items() if point.is_valid() and point.enabled]
        if not any(start <= rsp < end + _FRAME for start, end in watched):
            return
        for start, end in watched:
            if start <= rsp + _FRAME and end > rsp - _PAGE:
                self._given_up.add((start, end))
                self._points[start, end].enabled = False

    def clear(self) -> None:
        """Delete all. Not from a stop."""
        while self._points:
            point = self._points.popitem()[1]
            if point.is_valid():
                point.delete()

    def _can(self, address: int) -> bool:
        """Whether the guest's QEMU watches as much as one likes: a CPU's debug registers under KVM do not, and GDB
        would find that out only when the guest is to go on."""
        if self._able is None:
            self._able = self._target.accepts_watch(address, _ODD)
        return self._able


def _stir() -> None:
    gdb.set_convenience_variable(_VARIABLE, random.getrandbits(32))
