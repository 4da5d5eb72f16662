"""Windows: stretches of code in which an exception or a debugger stop finds half-switched state.

Between a ``syscall`` entry and the switch to the kernel's stack, between an interrupt's first instruction and its
``swapgs``, and between the exit-side ``swapgs`` (or the load of the user's RSP) and the ``sysret``/``iret``, kernel
code runs with the user's GS base or on the user's stack. They are found from the graph of an exploration:

* the *entry side* of a ``swapgs`` is what lies between an entry and it without a completed call;
* the *exit side* is what lies between it and an exit, likewise;
* two ``swapgs`` around a ``mov gs`` bracket a stretch of their own.

An address belongs to a window if a stop *there*, before its instruction runs, finds the half-switched state: the
opening ``swapgs`` of an exit is the last address outside, the closing one of an entry the last inside. Where a kernel
uses ``wrgsbase`` (or ``wrmsr`` of GS_BASE) on these paths, that counts as its ``swapgs``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from gdbext.arch.registers import MSR_GS_BASE
from gdbext.arch.vectors import NMI
from gdbext.code.classify import stack_source
from gdbext.code.disasm import Code, Flow
from gdbext.code.graph import Graph
from gdbext.code.paths import Entry, Exit, Gateway, Reach


class Reason(Enum):
    """Why a stretch is a window."""

    SYSCALL_ENTRY = "syscall-entry"
    INTERRUPT_ENTRY = "interrupt-entry"
    EXIT = "exit"
    GS_LOAD = "gs-load"
    SHADOW = "shadow"
    IST_HANDLER = "ist-handler"


class Stack(Enum):
    """What RSP holds."""

    KERNEL = "kernel RSP"
    USER = "user RSP"
    ENTRY = "RSP on the SYSENTER stack"
    NOTHING = "RSP holding no stack"
    IST = "RSP on an IST stack"


@dataclass(frozen=True, slots=True)
class Stretch:
    """Addresses `start` to `end` (exclusive, guest virtual) with one state.

    ``certain``: every known way to it carries that state; if not, the same instructions also run with the kernel's
    state (an interrupt entry that interrupted kernel code, an exit shared with returns to kernel code).
    """

    start: int
    end: int
    stack: Stack
    user_gs: bool
    certain: bool


@dataclass(frozen=True, slots=True)
class Window:
    """One window. ``why``: a sentence; ``opened_by``: entry points, or instructions that, when run, open it;
    ``landings``: first addresses after it; ``exits``: exit instructions with which it ends: it lands in the context
    they resume (RCX for sysret, the frame for iret)."""

    reason: Reason
    why: str
    stretches: tuple[Stretch, ...]
    opened_by: tuple[int, ...]
    landings: tuple[int, ...] = ()
    exits: tuple[int, ...] = ()

    def at(self, pc: int) -> Stretch | None:
        """The stretch that holds `pc`, if one does."""
        return next((s for s in self.stretches if s.start <= pc < s.end), None)

    def state_at(self, pc: int) -> str:
        """What is half-switched at `pc`: ``kernel code, user RSP, user GS active``; "" outside."""
        stretch = self.at(pc)
        if stretch is None:
            return ""
        state = f"kernel code, {stretch.stack.value}, {'user' if stretch.user_gs else 'kernel'} GS active"
        return state if stretch.certain else state + " (if the context came from or goes to user mode)"


def find(windows: Iterable[Window], pc: int, user_gs: bool | None = None) -> Window | None:
    """The window that holds `pc`, the most certain first; None outside.

    ``user_gs``: whether the user's GS base is active now, where that is known. It decides for stretches that run in
    both states, and that are half-switched through GS alone.
    """
    best = None
    for window in windows:
        stretch = window.at(pc)
        if stretch is None:
            continue
        if stretch.certain:
            return window
        if user_gs is False and stretch.user_gs and stretch.stack is Stack.KERNEL:
            continue
        best = best or window
    return best


def windows(code: Code, reach: Reach) -> list[Window]:
    """All windows in what `reach` has seen, syscall entries first, shadows last."""
    return _Finder(code, reach).run()


_STEPS: Final = 200
"""Instructions between an entry and its swapgs, or a swapgs and its exit, at most."""
_PAIR_STEPS: Final = 12

State = tuple[int, Stack, bool]
"""(address, what RSP holds, user's GS active)."""


class _Finder:
    def __init__(self, code: Code, reach: Reach) -> None:
        self.code = code
        self.reach = reach
        self.graph = Graph(reach)
        self.writes = {
            m.address for m in reach.msrs if m.name == "wrgsbase" or (m.name == "wrmsr" and m.msr == MSR_GS_BASE)
        }
        self.pairs = self._pairs()
        paired = self.pairs.keys() | set(self.pairs.values())
        bracketed = {n for first, second in self.pairs.items() for n in self._between(first, second)}
        self.swaps = (set(reach.swapgs) | self.writes) - paired - bracketed
        interrupts = [e.address for e in reach.entries if e.gateway is Gateway.INTERRUPT]
        syscalls = [e.address for e in reach.entries if e.gateway is not Gateway.INTERRUPT]
        self.entry_reach = self.graph.forward(interrupts, self._is_swap, _STEPS)
        self.entry_side = self._entry_side(self.entry_reach | self.graph.forward(syscalls, self._is_swap, _STEPS))

    def run(self) -> list[Window]:
        found: list[Window] = []
        for entry in self.reach.entries:
            if entry.gateway is not Gateway.INTERRUPT:
                found += self._syscall_entry(entry)
        found += self._interrupt_entries()
        for leaving in self.reach.exits:
            if not leaving.to_itself:
                found += self._exit(leaving)
        found += [self._gs_load(first, second) for first, second in self.pairs.items()]
        found += self._ist_handlers()
        found += [w for address in self.reach.shadows for w in self._shadow(address)]
        return found

    def _is_swap(self, address: int) -> bool:
        return address in self.swaps

    def _pairs(self) -> dict[int, int]:
        """swapgs → swapgs a few instructions on, within a function, around an access to the user's GS."""
        pairs: dict[int, int] = {}
        swapgs = set(self.reach.swapgs)
        for first in self.reach.swapgs:
            address, loads = first, False
            for _ in range(_PAIR_STEPS):
                following = self.reach.successors.get(address, ())
                if len(following) != 1 or address in self.reach.calls:
                    break
                address = following[0]
                insn = self.code.insn(address)
                if insn is None or insn.flow is Flow.EXIT:
                    break
                loads = loads or insn.writes_register("gs") or insn.name in ("rdgsbase", "wrgsbase")
                if address in swapgs:
                    if loads:
                        pairs[first] = address
                    break
        return pairs

    def _entry_side(self, reached: set[int]) -> set[int]:
        """The swapgs that an entry meets first. Code without calls may seem to reach the exit-side one past the
        decision for the entry-side one: what another of them leads to is not first."""
        swaps = {a for a in reached if self._is_swap(a)}
        later: set[int] = set()
        for swap in swaps:
            after = self.graph.forward(self.graph.after(swap), self._is_swap, _STEPS)
            later |= (after & swaps) - {swap}
        return swaps - later if swaps - later else swaps

    def _syscall_entry(self, entry: Entry) -> list[Window]:
        stack = Stack.ENTRY if entry.gateway is Gateway.SYSENTER else Stack.USER
        needs_gs = self.code.bits == 64
        before, landings = self._until_switched((entry.address, stack, needs_gs), needs_gs)
        if not landings and needs_gs:  # a kernel without swapgs: the stack alone is switched
            before, landings = self._until_switched((entry.address, stack, False), False)
        if not landings:
            return []
        missing = ["stack"] if any(held is not Stack.ENTRY for _, held, _ in before) or not needs_gs else []
        missing += ["GS base"] if any(gs for _, _, gs in before) else []
        plural = "are" if len(missing) > 1 else "is"
        why = f"from the {entry.gateway.value} entry until the kernel's {' and '.join(missing)} {plural} in place"
        states = {address: (held, gs, True) for address, held, gs in before}
        return [Window(Reason.SYSCALL_ENTRY, why, self._stretches(states), (entry.address,), tuple(sorted(landings)))]

    def _until_switched(self, start: State, swaps: bool) -> tuple[set[State], set[int]]:
        """(states half-switched that lead to a switched one, addresses of the first switched ones)."""
        came_from: dict[State, list[State]] = {start: []}
        work = [start]
        done: list[State] = []
        for _ in range(2 * _STEPS):
            if not work:
                break
            state = work.pop(0)
            for following in self._step(state, swaps):
                known = following in came_from
                came_from.setdefault(following, []).append(state)
                if known:
                    continue
                _, stack, gs = following
                enough = stack is Stack.KERNEL or (swaps and stack is Stack.ENTRY)
                if enough and not gs:
                    done.append(following)
                else:
                    work.append(following)
        before: set[State] = set()
        work = list(done)
        while work:
            for previous in came_from[work.pop()]:
                if previous not in before:
                    before.add(previous)
                    work.append(previous)
        return before, {address for address, _, _ in done}

    def _step(self, state: State, swaps: bool) -> list[State]:
        address, stack, gs = state
        insn = self.code.insn(address)
        if insn is None or insn.flow is Flow.EXIT:
            return []
        if swaps and self._is_swap(address):
            gs = not gs
        source = stack_source(insn)
        if source:
            stack = Stack.NOTHING if source == "control" else Stack.KERNEL
        return [(following, stack, gs) for following in self.graph.after(address)]

    def _interrupt_entries(self) -> list[Window]:
        """One window for all ``swapgs`` that the same entries lead to."""
        starts = {e.address for e in self.reach.entries if e.gateway is Gateway.INTERRUPT}
        groups: dict[frozenset[int], set[int]] = {}
        for swap in self.entry_side:
            others = self.swaps - {swap}
            nodes = self.graph.backward([swap], others.__contains__, 2 * _STEPS, self.entry_reach)
            nodes -= others
            if nodes & starts:
                groups.setdefault(frozenset(nodes & starts), set()).update(nodes)
        inside = set().union(*groups.values())
        found = []
        for entries, nodes in sorted(groups.items(), key=lambda item: min(item[0])):
            after = {n for node in nodes for n in self.graph.after(node)}
            why = "from an interrupt's first instruction to the decision on swapgs and the swapgs"
            stretches = self._stretches(dict.fromkeys(nodes, (Stack.KERNEL, True, False)))
            landings = tuple(sorted(after - inside))
            found.append(Window(Reason.INTERRUPT_ENTRY, why, stretches, tuple(sorted(entries)), landings))
        return found

    def _exit(self, leaving: Exit) -> list[Window]:
        user_gs, swaps = self._after_swap(leaving.address)
        user_stack: set[int] = set()
        switches: set[int] = set()
        if leaving.how == "sysret":
            user_stack, switches = self._after_switch(leaving.address)
        states = {}
        gs_certain = self.graph.always(user_gs, swaps - self.writes)  # a write may put back either base
        stack_certain = self.graph.always(user_stack, switches)
        for node in user_gs | user_stack:
            certain = node in gs_certain or node in stack_certain
            states[node] = (Stack.USER if node in user_stack else Stack.KERNEL, node in user_gs, certain)
        if not states:
            return []
        openers = tuple(sorted(swaps | switches))
        parts = ["the swapgs"] if swaps - self.writes else ["the write of the GS base"] if swaps else []
        parts += ["the load of the user's RSP"] if switches else []
        why = f"from {' and '.join(parts)} to the {leaving.how}"
        return [Window(Reason.EXIT, why, self._stretches(states), openers, (), (leaving.address,))]

    def _after_swap(self, leaving: int) -> tuple[set[int], set[int]]:
        """(addresses between an exit-side swapgs and the exit `leaving`, those swapgs)."""
        back = self.graph.backward([leaving], self._is_swap, _STEPS)
        swaps = {a for a in back if self._is_swap(a) and not self._leads_to_swap(a)}
        inside = {a for a in back if not self._is_swap(a)}
        starts = {n for swap in swaps for n in self.graph.after(swap)} & inside
        return self.graph.forward(starts, lambda a: a == leaving, _STEPS, inside), swaps

    def _leads_to_swap(self, swap: int) -> bool:
        """True for an entry-side swapgs from which another is reached: the way past that one is not taken."""
        if swap not in self.entry_side:
            return False
        after = self.graph.forward(self.graph.after(swap), self._is_swap, _STEPS)
        return any(self._is_swap(a) for a in after)

    def _after_switch(self, leaving: int) -> tuple[set[int], set[int]]:
        """(addresses between the last load of RSP and the exit `leaving`, those loads)."""
        back = self.graph.backward([leaving], self._is_switch, _STEPS)
        switches = {a for a in back if self._is_switch(a)}
        inside = back - switches
        starts = {n for switch in switches for n in self.graph.after(switch)} & inside
        return self.graph.forward(starts, lambda a: a == leaving, _STEPS, inside), switches

    def _is_switch(self, address: int) -> bool:
        insn = self.code.insn(address)
        return insn is not None and stack_source(insn) not in ("", "control")

    def _gs_load(self, first: int, second: int) -> Window:
        states = dict.fromkeys(self._between(first, second), (Stack.KERNEL, True, True))
        why = "between two swapgs around the load of the user's GS selector"
        return Window(Reason.GS_LOAD, why, self._stretches(states), (first,), tuple(self.graph.after(second)))

    def _between(self, first: int, second: int) -> set[int]:
        return self.graph.forward(self.graph.after(first), lambda a: a == second, _PAIR_STEPS)

    def _ist_handlers(self) -> list[Window]:
        """The stubs of handlers on IST stacks and of the NMI, as far as no other entry runs through them too."""
        special = [e for e in self.reach.entries if e.ist or e.vector == NMI]
        others = {e.address for e in self.reach.entries} - {e.address for e in special}
        shared = self._stub(others, whole=True)
        found = []
        for entry in special:
            stub = self._stub({entry.address})
            nodes = stub - shared
            if not nodes:
                continue
            exits = tuple(e.address for e in self.reach.exits if e.address in stub)
            what = "the NMI handler" if entry.vector == NMI else f"a handler on IST stack {entry.ist}"
            why = f"{what}: entered again before its iret it overwrites its own frame"
            states = dict.fromkeys(nodes, (Stack.IST if entry.ist else Stack.KERNEL, False, True))
            found.append(Window(Reason.IST_HANDLER, why, self._stretches(states), (entry.address,), (), exits))
        return found

    def _stub(self, starts: set[int], whole: bool = False) -> set[int]:
        """The instructions of the handler itself (calls stepped over) until it exits or, unless `whole`, leaves its
        stack."""
        seen = set(starts)
        work = list(starts)
        while work:
            address = work.pop()
            if not whole and self._is_switch(address):
                continue
            for following in self.reach.successors.get(address, ()):
                if following not in seen:
                    seen.add(following)
                    work.append(following)
        return seen

    def _shadow(self, address: int) -> list[Window]:
        insn = self.code.insn(address)
        following = self.code.insn(insn.end) if insn else None
        if insn is None or following is None:
            return []
        why = f"the instruction after {insn.name}{' ss' if insn.name != 'sti' else ''}, before which nothing interrupts"
        stretch = Stretch(following.address, following.end, Stack.KERNEL, False, True)
        if following.flow is Flow.EXIT:
            return [Window(Reason.SHADOW, why, (stretch,), (address,), (), (following.address,))]
        return [Window(Reason.SHADOW, why, (stretch,), (address,), self.reach.successors.get(following.address, ()))]

    def _stretches(self, states: dict[int, tuple[Stack, bool, bool]]) -> tuple[Stretch, ...]:
        """Join instructions that follow one another in memory with the same state."""
        merged: list[Stretch] = []
        for address in sorted(states):
            stack, user_gs, certain = states[address]
            insn = self.code.insn(address)
            end = insn.end if insn else address + 1
            if merged:
                last = merged[-1]
                if last.end == address and (last.stack, last.user_gs, last.certain) == (stack, user_gs, certain):
                    merged[-1] = Stretch(last.start, end, stack, user_gs, certain)
                    continue
            merged.append(Stretch(address, end, stack, user_gs, certain))
        return tuple(merged)
