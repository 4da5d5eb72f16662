"""``ctx skip``: run to the first instruction after a window, with temporary hardware breakpoints.

The far side of a window is an address where code goes on, or the context that a ``sysret`` or an ``iret`` resumes. That
one is read from RCX or the frame when the exit is about to run: the vCPU runs freely up to there and on from there, and
is never stepped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import gdb

from gdbext.code.paths import Exit
from gdbext.code.windows import Window
from gdbext.errors import CtxwatchError, GuestFailed
from gdbext.gdb.guest import named
from gdbext.gdb.layout import Registers
from gdbext.gdb.target import Target, backwards, mode, running
from gdbext.gdb.windows import Place, Windows

_WINDOWS: Final = 8
"""Windows that may lie one behind the other."""
_STILL: Final = 50
"""Times in a row that GDB's step off a breakpoint of the user's may stand still."""
_MASK: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Goal:
    """Where to stop: `pc`, and the stack pointer there if it is known (guest virtual)."""

    pc: int
    sp: int | None = None
    leaving: Exit | None = None


class Landing(gdb.Breakpoint):  # type: ignore[misc]  # GDB's classes have no types
    """An internal hardware breakpoint for one vCPU; another context that passes there does not stop it."""

    def __init__(self, goal: Goal, thread: int) -> None:
        super().__init__(f"*{goal.pc:#x}", gdb.BP_HARDWARE_BREAKPOINT, internal=True)
        self.silent = True
        self.thread = thread
        self._goal = goal
        self.reached: Goal | None = None

    def stop(self) -> bool:
        """Called by GDB at the breakpoint."""
        sp = self._goal.sp
        if sp is not None and int(gdb.newest_frame().read_register("rsp")) & _MASK != sp:
            return False
        self.reached = self._goal
        return True


@dataclass(frozen=True, slots=True)
class Arrival:
    """``at``: where the vCPU stands (guest virtual); ``why``: how it came there, a clause."""

    at: int
    why: str


def skip(windows: Windows) -> Arrival:
    """Run the selected vCPU to the first instruction after the window it stands in, or in front of.

    Raises CtxwatchError where there is none to skip, and GuestFailed if the guest stopped elsewhere.
    """
    place = windows.here()
    if place is None or (place.window is None and place.opens is None):
        raise CtxwatchError("there is no window to skip", todo="ctx windows lists them")
    why: list[str] = []
    for _ in range(_WINDOWS):
        window = place.window or place.opens
        if window is None or (why and place.window is None):
            break
        why.append(_pass(windows, window, place))
        windows.forget()
        found = windows.here()
        if found is None:
            break
        place = found
    return Arrival(place.pc, ", then ".join(why))


def _pass(windows: Windows, window: Window, place: Place) -> str:
    """Run through one window; how it ended."""
    leaving = _exits(windows, window).get(place.pc)
    if leaving is None:
        leaving = _run_to(ways_out(windows, window, place.pc)).leaving
        if leaving is None:
            return f"past the {window.reason.value} window"
    _run_to([_target(leaving)])
    source = {"iret": "the frame of the iret", "sysret": "RCX at the sysret", "sysexit": "RDX at the sysexit"}
    return f"where {source[leaving.how]} said"


def ways_out(windows: Windows, window: Window, pc: int) -> list[Goal]:
    """Where the selected vCPU, which stands at `pc` in or in front of `window`, may be next on its way out of it: code
    behind it, or an exit; from an exit, the context that it resumes. Raises CtxwatchError if no way out is known."""
    exits = _exits(windows, window)
    if pc in exits:
        return [_target(exits[pc])]
    goals = [Goal(address) for address in window.landings]
    goals += [Goal(address, None, way) for address, way in exits.items()]
    if not goals:
        raise CtxwatchError(
            "this window cannot be skipped",
            "no way out of it was found",
            "continue runs on, ctx safe override steps",
        )
    return goals


def _exits(windows: Windows, window: Window) -> dict[int, Exit]:
    """The exit instructions with which `window` ends, by address."""
    machine = windows.machine()
    assert machine is not None
    assert machine.reach is not None
    return {way.address: way for way in machine.reach.exits if way.address in window.exits}


def _target(leaving: Exit) -> Goal:
    """The context that the exit, which the selected vCPU stands at, resumes."""
    target = Target()
    registers = target.registers()
    if leaving.how == "sysret":
        return Goal(registers["rcx"], registers["rsp"])
    if leaving.how == "sysexit":
        return Goal(registers["rdx"], registers["rcx"])
    return _from_frame(target, registers, leaving.word)


def _from_frame(target: Target, registers: Registers, word: int) -> Goal:
    """RIP, CS, RFLAGS, and RSP and SS: always in 64-bit mode, else where CPL changes (Intel SDM vol. 2, IRET)."""
    wide = mode(registers) == 64
    sp = registers["rsp"]
    try:
        raw = target.read(sp, 3 * word)
        pc, cs = (int.from_bytes(raw[i : i + word], "little") for i in (0, word))
        if wide or (cs & 3) != (registers["cs"] & 3):
            raw = target.read(sp + 3 * word, word)
            return Goal(pc, int.from_bytes(raw, "little"))
    except OSError as error:
        raise CtxwatchError("this window cannot be skipped", "the frame of its iret is not mapped", "") from error
    return Goal(pc, sp + 3 * word)


def _run_to(goals: list[Goal]) -> Goal:
    """Let the guest run until the selected vCPU reaches one of `goals`; raises GuestFailed if it stops elsewhere."""
    thread = gdb.selected_thread().global_num
    target = Target()
    stood = target.registers()
    with _forward(), _landings(goals, thread) as landings:
        for _ in range(_STILL):
            gdb.execute("continue", to_string=True)
            for landing in landings:
                if landing.is_valid() and landing.reached is not None:
                    return landing.reached
            # GDB steps off a breakpoint. QEMU reports that step as done, too, where the vCPU was kicked before it ran
            # the instruction, and GDB then stops at the same breakpoint again.
            if not _holds(thread) or target.registers() != stood:
                break
    raise GuestFailed("the window was not passed", f"the guest {_stopped_at()}")


def _holds(thread: int) -> bool:
    """Whether the guest stands still for the vCPU of GDB's thread `thread`."""
    return gdb.selected_inferior().pid != 0 and not running() and gdb.selected_thread().global_num == thread


def _stopped_at() -> str:
    if gdb.selected_inferior().pid == 0:
        return "is gone"
    return "runs" if running() else f"stopped at {named(int(gdb.newest_frame().pc()))} before"


@contextlib.contextmanager
def _forward() -> Iterator[None]:
    """Whichever way the user has the guest run."""
    turned = backwards()
    if turned:
        gdb.execute("set exec-direction forward", to_string=True)
    try:
        yield
    finally:
        if turned:
            gdb.execute("set exec-direction reverse", to_string=True)


@contextlib.contextmanager
def _landings(goals: list[Goal], thread: int) -> Iterator[list[Landing]]:
    made: list[Landing] = []
    try:
        for goal in goals:
            made.append(Landing(goal, thread))
        yield made
    finally:
        for landing in made:
            with contextlib.suppress(gdb.error):
                if landing.is_valid():
                    landing.delete()
