"""Where a kernel's code keeps contexts: the very instructions that store and load them, found by following code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from gdbext.arch.registers import GPR64, SEGMENTS
from gdbext.code.disasm import Code, Flow, Insn
from gdbext.code.graph import Graph
from gdbext.code.operands import Mem, Reg
from gdbext.code.paths import Entry, Limits, Reach, explore
from gdbext.code.savemap import at_entry
from gdbext.code.state import State
from gdbext.code.walk import Bounds, End, Walker

NEAR: Final = Limits(instructions=6_000, calls=3)
"""How far from the entries code is looked at."""
_ENTRY_PATH: Final = Bounds(steps=160, paths=24, visits=1)
_EXIT_PATH: Final = 80
"""Instructions before an exit among which its loads are looked for."""
_GAP: Final = 16
"""Bytes between two instructions of one save, at most."""


@dataclass(frozen=True, slots=True)
class Move:
    """`insn` stores the interrupted `field`, or loads it."""

    insn: Insn
    field: str


class _Recorder(Walker):
    """A walk that notes which instructions store the interrupted context; calls are followed."""

    def __init__(self, code: Code) -> None:
        super().__init__(code, _ENTRY_PATH, keep=lambda _: True)
        self.found: dict[tuple[int, str], Move] = {}

    def _next(self, insn: Insn, state: State, helpers: int) -> tuple[End | None, list[tuple[int, State]]]:
        before = _places(state)
        ended, following = super()._next(insn, state, helpers)
        for _, field in _places(state) - before:
            if insn.name in ("push", "mov"):  # not a copy of what is stored already
                self.found.setdefault((insn.address, field), Move(insn, field))
        return ended, following


def _places(state: State) -> set[tuple[object, str]]:
    return {(place, value.context) for place, _, value in state.stored() if value.context}


def stores(code: Code, entry: Entry) -> list[Move]:
    """The instructions behind `entry` that store the interrupted context where most of it goes, by address."""
    recorder = _Recorder(code)
    for _ in recorder.run(entry.address, at_entry(code.bits, entry.gateway, bool(entry.error_code))):
        pass
    runs = _runs(sorted(recorder.found.values(), key=lambda move: move.insn.address))
    return max(runs, key=lambda run: len({move.field for move in run}), default=[])


def _runs(moves: Iterable[Move]) -> list[list[Move]]:
    """Moves that lie close together."""
    runs: list[list[Move]] = []
    for move in moves:
        if runs and move.insn.address - runs[-1][-1].insn.end <= _GAP:
            runs[-1].append(move)
        else:
            runs.append([move])
    return runs


def reached(code: Code, entries: Sequence[Entry]) -> Reach:
    """What the handlers reach, not far."""
    return explore(code, entries, NEAR)


def loads(code: Code, reach: Reach, leaving: int) -> list[list[Move]]:
    """The runs of instructions that load a context before the exit at `leaving`, by address; each is run straight."""
    before = Graph(reach).backward([leaving], lambda _: False, _EXIT_PATH)
    runs: list[list[Move]] = []
    straight = False
    for at in sorted(before):
        insn = code.insn(at)
        if insn is None:
            continue
        field = _loaded(insn)
        if field and straight and runs:
            runs[-1].append(Move(insn, field))
        elif field:
            runs.append([Move(insn, field)])
            straight = True
        straight = straight and insn.flow is Flow.NEXT and insn.end in before
    return runs


def _loaded(insn: Insn) -> str:
    """The register that `insn` loads from memory, "" if it loads none."""
    target = insn.destination
    if not isinstance(target, Reg) or target.name not in (*GPR64, *SEGMENTS) or target.name == "rsp":
        return ""
    return target.name if insn.name == "pop" or (insn.name == "mov" and isinstance(insn.source, Mem)) else ""


def moves_of_switch(code: Code, starts: Iterable[int], ends: Iterable[int]) -> tuple[list[Move], list[Move]]:
    """The pushes at the beginnings of thread switches, and the pops before their ends: of those that have both."""
    pushes: list[Move] = []
    for start in starts:
        run = list(_straight(code, start, "push"))
        pushes = run if len(run) > len(pushes) else pushes
    if not pushes:
        return [], []
    pops: list[Move] = []
    address = pushes[-1].insn.end
    for _ in range(100):
        insn = code.insn(address)
        if insn is None or insn.flow in (Flow.RETURN, Flow.EXIT):
            break
        if insn.name == "pop" and (field := _loaded(insn)):
            pops.append(Move(insn, field))
        address = insn.target if insn.flow is Flow.JUMP and insn.target else insn.end
        if address in set(ends):
            break
    return pushes, pops


def _straight(code: Code, address: int, name: str) -> Iterable[Move]:
    """The run of `name` instructions with a register that begins at or just behind `address`."""
    for _ in range(12):
        insn = code.insn(address)
        if insn is None or insn.flow is not Flow.NEXT:
            return
        if insn.name == name and isinstance(insn.destination, Reg) and insn.destination.name in GPR64:
            yield Move(insn, insn.destination.name)
        address = insn.end
