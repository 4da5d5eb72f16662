"""Find a kernel's entry points in its image, before it runs: by what they do, as far as an ELF file allows.

Where interrupts enter is written into a table that the kernel builds when it starts. But the code there is unlike any
other: near an ``iret`` or ``sysret``, and storing the registers that no compiled function would.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from gdbext.code.classify import is_padding
from gdbext.code.compare import compare, pairs
from gdbext.code.disasm import Code, Flow
from gdbext.code.graph import Graph
from gdbext.code.paths import Entry, Gateway, Limits, explore
from gdbext.code.savemap import SaveMap, restore_maps, save_maps
from gdbext.code.values import Context

REACH: Final = 8192
"""Bytes around an exit in which its entries are looked for."""
SCRATCH: Final = frozenset({"rax", "rcx", "rdx"})
MANY: Final = {64: 8, 32: 6}
"""General registers stored, by mode, that make a save."""
MAX_CANDIDATES: Final = 6000
MAX_STUB: Final = 4
"""Instructions of a stub that pushes a vector number and jumps to the common entry."""
LIMITS: Final = Limits(instructions=6_000, calls=4)
FORGOTTEN: Final = 3
"""Registers that an entry path may forget and still be known for one."""
_EXITS: Final = {64: re.compile(rb"\x48\xcf|\x48\x0f\x07"), 32: re.compile(rb"\xcf|\x0f\x35")}
_ENDS: Final = frozenset({Flow.JUMP, Flow.RETURN, Flow.EXIT, Flow.STOP})

Segment = tuple[int, bytes]
"""Guest virtual address, bytes."""


def find_entries(code: Code, segments: Sequence[Segment], symbols: Iterable[int]) -> list[Entry]:
    """The entry points of the kernel in `segments`, in order of address; `symbols`: addresses that have names."""
    near = _near(code.bits, segments)
    candidates = {at for at in symbols if any(start <= at < end for start, end in near)}
    candidates |= set(_beginnings(code, near))  # a row of stubs has one name, a stripped image none
    alike: dict[object, int] = {}
    for at in sorted(candidates):
        alike.setdefault(_stub(code, at) or at, at)
    saving = [at for at in list(alike.values())[:MAX_CANDIDATES] if _saves(code, at)]
    found = [entry for at in saving if (entry := _as_entry(code, at)) is not None]
    inner = {target for entry in found for target in _targets(code, entry)}
    return sorted((entry for entry in found if entry.address not in inner), key=lambda entry: entry.address)


def _stub(code: Code, address: int) -> object:
    """What a stub has in common with its like: the pushes, and where it goes on; None if it is none."""
    names: list[str] = []
    for _ in range(MAX_STUB):
        insn = code.insn(address)
        if insn is None:
            return None
        if insn.flow is Flow.JUMP:
            return (*names, insn.target) if names else None
        names.append(insn.name)
        address = insn.end
    return None


def _near(bits: int, segments: Sequence[Segment]) -> list[tuple[int, int]]:
    """Stretches around the exits, joined where they meet."""
    stretches: list[tuple[int, int]] = []
    for base, data in segments:
        for match in _EXITS[bits].finditer(data):
            start = max(base, base + match.start() - REACH) & ~15
            end = min(base + len(data), base + match.end() + REACH)
            if stretches and start <= stretches[-1][1]:
                stretches[-1] = stretches[-1][0], end
            else:
                stretches.append((start, end))
    return stretches


def _beginnings(code: Code, stretches: Iterable[tuple[int, int]]) -> Iterator[int]:
    """Addresses that nothing falls into: behind a jump, a return, padding."""
    for start, end in stretches:
        at, fresh = start, True
        while at < end:
            insn = code.insn(at)
            if insn is None:
                at, fresh = at + 1, True
                continue
            if fresh and not is_padding(insn):
                yield at
                fresh = False
            fresh = fresh or insn.flow in _ENDS
            at = insn.end


def _kinds(code: Code, address: int) -> tuple[Entry, ...]:
    """What an entry at `address` may be."""
    call = Gateway.SYSCALL if code.bits == 64 else Gateway.SYSENTER
    return Entry(address, error_code=False), Entry(address, error_code=True), Entry(address, call)


def _saves(code: Code, address: int) -> bool:
    """True if a context is saved at `address`, whatever kind of entry it is."""
    for entry in _kinds(code, address):
        saves = save_maps(code, entry)
        if any(_is_save(save) for save in saves):
            return True
        if not any(len(save.stored) >= MANY[code.bits] for save in saves):
            return False
    return False


def _as_entry(code: Code, address: int) -> Entry | None:
    """The entry at `address`, of the kind that fits the exits it leads to best; None if it leads to none."""
    reach = explore(code, [address], LIMITS)
    graph = Graph(reach)
    restores = [m for e in reach.exits if not e.to_itself for m in restore_maps(code, reach, e, graph)]
    if not restores:
        return None
    best: tuple[tuple[int, int], Entry] | None = None
    for entry in _kinds(code, address):
        saves = [save for save in save_maps(code, entry) if _is_save(save) and not _on_user_stack(save)]
        faults = sum(s.fault for save, restore in pairs(saves, restores) for s in compare(save, restore))
        score = faults, min((len(save.never) for save in saves), default=0)
        if saves and (best is None or score < best[0]):
            best = score, entry
    return best[1] if best is not None else None


def _on_user_stack(save: SaveMap) -> bool:
    """True if the path pushes before it has a stack of its own: no system call's entry does."""
    places = {p for places in save.stored.values() for p in places} | save.written.keys()
    return any(place.atom == Context("rsp") for place in places)


def _is_save(save: SaveMap) -> bool:
    general = [name for name in save.layout if name in save.needed or name in SCRATCH]
    return (
        len(general) >= MANY[save.bits]
        and len(SCRATCH & save.layout.keys()) >= 2
        and "rip" in save.layout
        and len(save.never) <= (len(general) if save.on_stack else FORGOTTEN)
    )


def _targets(code: Code, entry: Entry) -> set[int]:
    """Where the first instructions of `entry` jump or call: what begins there is a part of it."""
    reach = explore(code, [entry], Limits(instructions=60, calls=1))
    inside = {following for at, after in reach.successors.items() for following in after if following != at}
    return (inside | set(reach.calls.values())) - {entry.address}
