"""Which of the interrupted code's flags reach a handler's code.

The CPU clears TF, NT, RF and VM (and IF) on the way through an interrupt gate (Intel SDM vol. 3A, 6.12.1.2), and
``syscall`` what FMASK names; DF and AC of user code stay set until the handler clears them. Compiled code counts on
DF being clear, string instructions obey it, and AC set lifts SMAP.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from gdbext.arch.flags import AC, DF, NT, RF, TF, VM
from gdbext.code.disasm import Code, Flow, Insn
from gdbext.code.operands import Imm, Mem, Reg
from gdbext.code.paths import Entry, Gateway, Reach

WATCHED: Final = DF | AC | NT
GATE_CLEARS: Final = TF | NT | RF | VM
_STRING: Final = frozenset({"movs", "stos", "lods", "scas", "cmps", "ins", "outs"})
_STATES: Final = 2_000


@dataclass(frozen=True, slots=True)
class EntryFlags:
    """``leaks``: flag bit → address of the first instruction (a call of compiled code, its jump through a table, or a
    string instruction) that runs with the interrupted code's value of it; a flag that is cleared in time on every path
    is absent."""

    entry: int
    leaks: dict[int, int]


def flags_on_entry(code: Code, reach: Reach, entry: Entry, cleared: int | None = None) -> EntryFlags:
    """Follow every path from `entry` to its first call or string instruction.

    ``cleared``: RFLAGS bits that are clear when the entry is reached; by default what an interrupt gate clears, and
    nothing for ``syscall`` (pass FMASK). A call is followed once, because entry code has helpers that clear flags
    for it; what the helper calls in turn, or runs, counts, and so does its jump to where the bytes do not say: it is
    no helper but compiled code, with a ``switch``.
    """
    if cleared is None:
        cleared = GATE_CLEARS if entry.gateway is Gateway.INTERRUPT else 0
    leaks: dict[int, int] = {}
    start = (entry.address, WATCHED & ~cleared, 0)
    seen = {start}
    work = deque([start])
    for _ in range(_STATES):
        if not work:
            break
        address, pending, back = work.popleft()
        insn = code.insn(address)
        if insn is None or not pending:
            continue
        target = reach.calls.get(address)
        if is_string(insn):
            _note(leaks, pending & DF, address)
            pending &= ~DF
        elif insn.flow is Flow.CALL and reach.successors.get(address, (insn.end,)) != (insn.target,):
            if target is None or back:
                _note(leaks, pending, address)
                continue
            back = insn.end
        elif back and insn.flow is Flow.JUMP and reach.successors.get(address) == ():
            _note(leaks, pending, address)
            continue
        following = _following(insn, reach, target, back)
        back = 0 if insn.flow is Flow.RETURN else back
        for state in ((f, _after(code, insn, pending), back) for f in following):
            if state not in seen:
                seen.add(state)
                work.append(state)
    return EntryFlags(entry.address, leaks)


def is_string(insn: Insn) -> bool:
    """True for movs, stos and their kin, whose direction DF gives (an SSE ``movsd`` names an XMM register)."""
    if insn.name[:-1] not in _STRING or insn.name[-1] not in "bwdq":
        return False
    return not any(isinstance(o, Reg) and o.name.startswith("xmm") for o in insn.operands)


def _following(insn: Insn, reach: Reach, target: int | None, back: int) -> tuple[int, ...]:
    if target is not None:
        return (target,)
    following = reach.successors.get(insn.address, ())
    return (back,) if insn.flow is Flow.RETURN and back and not following else following


def _note(leaks: dict[int, int], pending: int, address: int) -> None:
    for bit in (DF, AC, NT):
        if pending & bit:
            leaks.setdefault(bit, address)


def _after(code: Code, insn: Insn, pending: int) -> int:
    """The flags of the interrupted code that survive `insn`."""
    name = insn.name
    if name == "cld":
        return pending & ~DF
    if name == "clac":
        return pending & ~AC
    if name in ("popf", "popfd", "popfq"):
        return pending & _popped(code, insn)
    return pending


def _popped(code: Code, popf: Insn) -> int:
    """The bits that may be set after `popf`: what the instruction just before it pushed or masked."""
    for size in range(1, 12):
        before = code.insn(popf.address - size)
        if before is None or before.end != popf.address:
            continue
        target, source = before.destination, before.source
        if before.name == "push" and isinstance(target, Imm):
            return target.value
        if before.name == "and" and isinstance(target, Mem) and target.base == "rsp" and isinstance(source, Imm):
            return source.value
    return WATCHED
