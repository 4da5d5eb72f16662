"""The edges of windows: where a step that comes from outside must stop, and where a stop is safe instead."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from gdbext.code.disasm import Code
from gdbext.code.paths import Reach
from gdbext.code.windows import Reason, Window, find

ENTRY_SIDE: Final = frozenset({Reason.SYSCALL_ENTRY, Reason.INTERRUPT_ENTRY, Reason.IST_HANDLER})
"""Windows that begin where an entry begins: the first instruction belongs to them, and nothing opens them."""


def opened_at(found: Sequence[Window], pc: int) -> Window | None:
    """The window that the instruction at `pc` opens when it runs; None if it opens none, or lies in another one."""
    if find(found, pc) is not None:
        return None
    return next((w for w in found if w.reason not in ENTRY_SIDE and pc in w.opened_by), None)


def edges(found: Sequence[Window], code: Code, reach: Reach, entries: Collection[int]) -> dict[int, Window]:
    """Address → the window it is an edge of: the instruction that opens it where that lies outside; the first one
    inside where it is entered from elsewhere, by one of `entries` or by the return of a call made inside."""
    edges: dict[int, Window] = {}
    for window in found:
        for address in window.opened_by:
            if address in entries if window.reason in ENTRY_SIDE else find(found, address) is None:
                edges.setdefault(address, window)
    for call in reach.calls:
        window_of = find(found, call)
        insn = code.insn(call) if window_of is not None else None
        if window_of is not None and insn is not None and window_of.at(insn.end) is not None:
            edges.setdefault(insn.end, window_of)
    return edges


def nearest_safe(found: Sequence[Window], calls: Mapping[int, int], pc: int) -> int | None:
    """The address nearest to `pc`, which lies in a window, at which a stop is safe on the way through that window:
    the instruction that opens it, the first one after it, or a function called in it. None if there is none.

    calls: call instruction → target, of the code that was explored.
    """
    seen: set[int] = set()
    safe: set[int] = set()
    work = [pc]
    while work:
        for candidate in set(_neighbours(found, calls, work.pop())) - seen:
            seen.add(candidate)
            if find(found, candidate) is None:
                safe.add(candidate)
            else:
                work.append(candidate)
    return min(safe, key=lambda address: abs(address - pc), default=None)


def _neighbours(found: Sequence[Window], calls: Mapping[int, int], pc: int) -> Iterator[int]:
    for window in found:
        if window.at(pc) is None:
            continue
        yield from window.landings
        if window.reason not in ENTRY_SIDE:
            yield from window.opened_by
        yield from (target for call, target in calls.items() if window.at(call) is not None)
