"""Thread switches: functions that leave one stack for another and return on the new one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from gdbext.code.classify import stack_source
from gdbext.code.disasm import Code, Flow, Insn


class Flows(Protocol):
    """What is known of the flow of control: of gdbext.code.paths.Reach, the part that is needed here."""

    successors: dict[int, tuple[int, ...]]
    depth_of: dict[int, int]


@dataclass(frozen=True, slots=True)
class SwitchFunction:
    """A function that leaves one stack for another and returns on the new one (a thread switch).

    ``entry``: its first instruction; ``load``: where the other stack's RSP is taken;
    ``ends``: the ``ret`` or the tail jump with which it ends.
    """

    entry: int
    load: int
    ends: tuple[int, ...]


_PROLOGUE: Final = 24
"""Instructions between the beginning of a thread switch and its store of RSP, at most."""
_SWITCH_STEPS: Final = 400


def switch_after(code: Code, graph: Flows, store: int, function: int) -> SwitchFunction | None:
    """The thread switch that begins with the store of RSP at `store` in `function`, if it is one.

    From the store on, every path is followed within the function to an instruction that loads RSP, and from there
    to the end; a path that takes RSP back from a frame pointer or from the new stack (``pop rsp``) only borrowed
    another stack.
    """
    first = code.insn(store)
    load = store if first is not None and stack_source(first) else 0  # an exchange is both
    ends: set[int] = set()
    work = [(following, load) for following in graph.successors[store]]
    seen = set(work)
    for _ in range(_SWITCH_STEPS):
        if not work:
            break
        address, loaded = work.pop()
        insn = code.insn(address)
        if insn is None or insn.flow in (Flow.EXIT, Flow.STOP) or address not in graph.successors:
            continue
        source = stack_source(insn)
        if source:
            if loaded or source == "frame" or insn.name == "pop":
                continue
            loaded = load = address
        elif loaded and insn.name == "leave":
            continue
        if loaded and insn.flow in (Flow.RETURN, Flow.JUMP) and _leaves(insn, graph, function):
            ends.add(address)
            continue
        for following in graph.successors[address]:
            if (following, loaded) not in seen:
                seen.add((following, loaded))
                work.append((following, loaded))
    return SwitchFunction(function, load, tuple(sorted(ends))) if ends else None


_NEAR: Final = 512
"""A jump within this many bytes stays within a hand-written function."""


def _leaves(insn: Insn, graph: Flows, function: int) -> bool:
    """True for a return, and for a jump that looks like a tail call."""
    if insn.flow is Flow.RETURN:
        return True
    following = graph.successors[insn.address]
    return not following or following[0] in graph.depth_of or not function <= following[0] <= insn.end + _NEAR


def switch_entry(code: Code, graph: Flows, store: int, function: int) -> int:
    """The first instruction of the function that stores RSP at `store`. One reached by tail jumps alone is known
    as part of those who jump: it begins where nothing falls or branches into."""
    before: dict[int, list[int]] = {}
    for address in range(store - _NEAR, store):
        for following in graph.successors.get(address, ()):
            before.setdefault(following, []).append(address)
    address = store
    for _ in range(_PROLOGUE):
        falling = [b for b in before.get(address, ()) if (i := code.insn(b)) and i.end == address]
        if not falling:
            sources = (code.insn(b) for b in before.get(address, ()))
            local = any(insn is not None and insn.flow is Flow.BRANCH for insn in sources)
            return function if local else address
        address = falling[0]
    return function
