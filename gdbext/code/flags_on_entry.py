"""Which of the interrupted code's flags reach a handler's code.

The CPU clears TF, NT, RF and VM (and IF) on the way through an interrupt gate (Intel SDM vol. 3A, 6.12.1.2), and
``syscall`` what FMASK names; DF and AC of user code stay set until the handler clears them. Compiled code counts on
DF being clear, string instructions obey it, and AC set lifts SMAP.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from gdbext.arch.flags import AC, DF, NT, RF, TF, VM
from gdbext.arch.vectors import WITH_ERROR_CODE
from gdbext.code.disasm import Code, Flow, Insn
from gdbext.code.operands import Imm, Mem, Reg
from gdbext.code.paths import Entry, Gateway, Reach
from gdbext.code.savemap import at_entry
from gdbext.code.walk import End, Walker

WATCHED: Final = DF | AC | NT
GATE_CLEARS: Final = TF | NT | RF | VM
_STRING: Final = frozenset({"movs", "stos", "lods", "scas", "cmps", "ins", "outs"})
_CLEARED_BY: Final = {DF: "cld", AC: "clac"}
_STATES: Final = 2_000


def flags_on_entry(
    code: Code, reach: Reach, entry: Entry, cleared: int | None = None, origin: str = ""
) -> dict[int, int]:
    """Follow every path from `entry` to its first call or string instruction; return what leaks: flag bit → address of
    the first instruction (a call of compiled code, its jump through a table, or a string instruction) that runs with
    the interrupted code's value of it. A flag that is cleared in time on every path is absent.

    ``origin``: ``user`` or ``kernel``, the code that was interrupted; paths that a test of the saved CS keeps it from
    do not count.  ``cleared``: RFLAGS bits that are clear when the entry is reached; by default what an interrupt gate
    clears, and nothing for ``syscall`` (pass FMASK). A call is followed once, because entry code has helpers that clear
    flags for it; what the helper calls in turn, or runs, counts, and so does its jump to where the bytes do not say: it
    is no helper but compiled code, with a ``switch``.
    """
    if cleared is None:
        cleared = GATE_CLEARS if entry.gateway is Gateway.INTERRUPT else 0
    leaks = _Leaks(code, entry, origin)
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
            leaks.note(pending & DF, address, back)
            pending &= ~DF
        elif insn.flow is Flow.CALL and reach.successors.get(address, (insn.end,)) != (insn.target,):
            if target is None or back:
                leaks.note(pending, address, back)
                continue
            back = address
        elif back and insn.flow is Flow.JUMP and reach.successors.get(address) == ():
            leaks.note(pending, address, back)
            continue
        following = _following(code, insn, reach, target, back)
        back = 0 if insn.flow is Flow.RETURN else back
        for state in ((f, _after(code, insn, pending), back) for f in following):
            if state not in seen:
                seen.add(state)
                work.append(state)
    return leaks.found


def is_string(insn: Insn) -> bool:
    """True for movs, stos and their kin, whose direction DF gives (an SSE ``movsd`` names an XMM register)."""
    if insn.name[:-1] not in _STRING or insn.name[-1] not in "bwdq":
        return False
    return not any(isinstance(o, Reg) and o.name.startswith("xmm") for o in insn.operands)


def _following(code: Code, insn: Insn, reach: Reach, target: int | None, back: int) -> tuple[int, ...]:
    """Where control goes on behind `insn`; ``target``: what it calls, ``back``: the call it was reached by, or 0."""
    if target is not None:
        return (target,)
    following = reach.successors.get(insn.address, ())
    call = code.insn(back) if insn.flow is Flow.RETURN and back and not following else None
    return (call.end,) if call is not None else following


class _Leaks:
    """The leaks found: flag bit → address."""

    def __init__(self, code: Code, entry: Entry, origin: str) -> None:
        self.found: dict[int, int] = {}
        self._code = code
        self._entry = entry
        self._origin = origin

    def note(self, pending: int, address: int, back: int) -> None:
        """The flags `pending` reach the instruction at `address`, in what the call at `back` calls (0: in none)."""
        for bit in (DF, AC, NT):
            if pending & bit and bit not in self.found and self._comes(back or address, bit):
                self.found[bit] = address

    def _comes(self, address: int, bit: int) -> bool:
        """False if, of the contexts whose flag `bit` is not cleared, only those of the other origin get there."""
        if not self._origin or self._entry.gateway is not Gateway.INTERRUPT:
            return True
        error_code = self._entry.error_code
        has_code = error_code if error_code is not None else self._entry.vector in WITH_ERROR_CODE
        state = at_entry(self._code.bits, self._entry.gateway, has_code)
        walker = Walker(self._code, stop=frozenset({address}), keep=lambda at: not self._clears(at, bit))
        paths = list(walker.run(self._entry.address, state))
        origins = {path.state.origin for path in paths if path.end is End.STOP}
        lost = any(path.end is End.LOST for path in paths)
        return lost or not origins or "" in origins or self._origin in origins

    def _clears(self, address: int, bit: int) -> bool:
        insn = self._code.insn(address)
        return insn is not None and insn.name == _CLEARED_BY.get(bit)


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
