"""The safety mode: no step, breakpoint or call where the guest's state is half-switched.

On from the moment the extension is loaded; nothing of the guest is read before somebody steps or breaks, or the guest
stops. Commands are heard of through hooks (gdbext.gdb.safehooks); a step that comes from outside stops in front of a
window (gdbext.gdb.safeedges); new breakpoints are looked at as they are made, whoever makes them; GDB's own
``may-call-functions`` is off while the guest stands inside one.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import gdb

from gdbext.code.edges import nearest_safe
from gdbext.code.windows import Window, find
from gdbext.gdb import adapter, later, safehooks, safetext
from gdbext.gdb.leadout import LeadOut
from gdbext.gdb.points import Point
from gdbext.gdb.safeedges import Edge, Edges, own
from gdbext.gdb.skip import Landing
from gdbext.gdb.stops import Settling
from gdbext.gdb.target import backwards, running
from gdbext.gdb.watching import Watching
from gdbext.gdb.windows import Place, Windows

PREFIX: Final = "ctxwatch: "
"""Before each line that :meth:`Extension.say` shows."""
_OURS: Final = (Point, Edge, Landing)
_MAY_CALL: Final = "may-call-functions"
_DPRINTF: Final = re.compile(r"^(\d+)\s+dprintf\s+\w+\s+[yn]\s+(0x[0-9a-f]+)", re.MULTILINE)


class Safety:
    """``on``: the mode; ``irqs``: interrupts were let in while stepping; ``history``: (time, what) of each time it
    was switched or overridden.

    watch: gives the watch at hand, if there is one.  say: shows a line, from inside a stop, too.
    """

    def __init__(self, windows: Windows, watch: Callable[[], Watching | None], say: Callable[[str], None]) -> None:
        self.on = True
        self.irqs = False
        self.history: list[tuple[float, str]] = []
        self.hooks = safehooks.Hooks(self)
        self._windows = windows
        self._watch = watch
        self._say = say
        self._edges = Edges()
        self._overridden = False
        self._command = ""
        """The guarded command that is about to run the guest."""
        self._ran = ""
        """The one that did."""
        self._back = False
        """Whether its edges are those of a guest that runs backwards."""
        self._stood = 0
        self._hit: int | None = None
        """The edge that the guest was stopped at."""
        self._settling = Settling(self._stopped)
        self._rested = True
        """Whether the guest stood still for the user, who may have made a breakpoint that GDB tells nobody of."""
        self._lead_out = LeadOut(windows, say)
        self._refused: list[gdb.Breakpoint] = []
        self._judged: set[int] = set()
        """Numbers of the user's breakpoints that were looked at, or made while the mode was off."""
        self._breaking = False
        self._calling: Place | None = None
        self._may_call: bool | None = None

    # Switching

    @property
    def active(self) -> bool:
        """Whether commands are looked at now."""
        return self.on and not self._overridden

    def switch(self, on: bool) -> None:
        """Turn the mode on or off."""
        if on == self.on:
            return
        self.on = on
        self.note(f"switched {'on' if on else 'off'}")
        if on:
            self._judged |= {number for number, _ in dprintfs()}
            self.hooks.install()
            self.look()
        else:
            self.hooks.remove()
            self._allow_calls()

    @contextlib.contextmanager
    def overridden(self, command: str) -> Iterator[None]:
        """Let everything pass for a while; noted as `command`."""
        self.note(f"overridden for: {command}")
        with self.unguarded():
            yield

    @contextlib.contextmanager
    def unguarded(self) -> Iterator[None]:
        """Let everything pass for a while."""
        before, self._overridden = self._overridden, True
        self._allow_calls()
        try:
            yield
        finally:
            self._judged |= {number for number, _ in dprintfs()}
            self._overridden = before
            self.look()

    def note(self, what: str) -> None:
        """Put into the history, and into the recording that is made."""
        self.history.append((time.time(), what))
        watch = self._watch()
        if watch is not None and watch.judging is not None:
            with watch.held():
                watch.judging.note(what)

    # What the hooks tell

    def before(self, command: str) -> None:
        """A guarded command is about to run; raises Refused."""
        self._settling.run()
        self._command, self._ran = "", ""
        self._breaking = command in safehooks.BREAKS
        looked_at = command in (*safehooks.CALLS, *safehooks.RUNS, safehooks.RETURN)
        if not self.active or not looked_at or running() or gdb.selected_inferior().pid == 0:
            return
        place = self._windows.here()
        if command in safehooks.CALLS:
            self._calling = place if place is not None and place.window is not None else None
            self._limit_calls(place)
        elif command == safehooks.RETURN:
            if place is not None and place.window is not None:
                raise safetext.step(command, place, False)
        elif place is not None:
            # Out of an inlined function, finish steps; and so does until without a place.
            inlined = gdb.newest_frame().type() == gdb.INLINE_FRAME
            runs = command in ("advance", "jump") or (command == "finish" and not inlined)
            back = command in safehooks.REVERSE or backwards()
            if place.window is not None or ((place.behind if back else place.opens) is not None and not runs):
                raise safetext.step(command, place, back)
            self._command, self._stood = command, place.pc
        if self._command or self._calling is not None:
            self._post()  # it may fail

    def after(self, command: str) -> None:
        """A guarded command has run; raises Refused if a breakpoint it made is."""
        self._calling = None
        self._breaking = False
        refused = self.delete_refused()
        if refused is None and command == "dprintf" and self.active:
            refused = self._delete_dprintfs()
        if refused is not None:
            raise refused

    def _delete_dprintfs(self) -> safetext.Refused | None:
        """Delete those in a window, which GDB shows to no event and not as breakpoints; why the first was refused."""
        if not running():
            self._windows.all()
        first = None
        for number, address in dprintfs():
            refused = self._reason(number, [address])
            if refused is not None and number not in self._judged:
                gdb.execute(f"delete {number}", to_string=True)
                first = first or refused
        return first

    # What GDB tells

    def connect_events(self) -> None:
        """Listen."""
        gdb.events.cont.connect(self._on_continue)
        gdb.events.stop.connect(self._on_stop)
        gdb.events.before_prompt.connect(self._on_prompt)
        gdb.events.breakpoint_created.connect(self._on_breakpoint)
        gdb.events.exited.connect(self._on_exit)

    def _on_continue(self, event: Any) -> None:
        self._settling.drop()
        self._allow_calls()
        if not self._edges.armed:
            self._ran = self._command
            if self._ran:
                self._arm(self._ran)
        self._command = ""
        if self._rested and self.active:  # the machine interface makes dprintfs that no hook follows
            refused = self._delete_dprintfs()
            if refused is not None:
                self._say_why(refused)
        self._rested = False
        self._windows.forget()

    def _arm(self, command: str) -> None:
        """Breakpoints for what GDB is about to do, which by now it has set its own for."""
        thread = gdb.selected_thread().global_num
        self._back = False
        ends = own().ends
        found = self._windows.known()
        if command == "jump":
            pc = int(gdb.newest_frame().pc())
            ends = frozenset({pc}) if find(found, pc) is not None else frozenset()
            self._edges.arm(list(ends), thread, always=True)
        elif ends:
            held = [window for window in found if any(window.at(end) is not None for end in ends)]
            self._edges.arm([a for a, w in self._windows.edges(True).items() if w in held], thread, always=True)
        else:
            self._back = backwards()
            edges = self._windows.back_edges() if self._back else self._windows.edges(self.irqs)
            self._edges.arm(list(edges), thread, always=False)

    def _on_stop(self, event: Any) -> None:
        """The guest stands still for the user; a Ctrl-C that comes now asks for nothing more."""
        with contextlib.suppress(KeyboardInterrupt):
            self._rested = True
            self._hit = self._edges.hit
            self._edges.disarm()
            self._settling.stop(event)

    def _stopped(self) -> None:
        hit, stood = self._hit, self._stood
        ran_back = f"reverse-{self._ran.removeprefix('reverse-')}" if self._ran and self._back else ""
        self._tell_refused()
        if not self.on or running() or not _remote():
            return
        self.hooks.install()
        self._windows.forget()
        place = self.look()
        self._judge_earlier()
        if self._lead_out.stopped(place):
            self._post_lead_out()
        elif ran_back and place is not None and place.window is not None and self.active:
            self._lead_out.begin(ran_back, place)
            self._post_lead_out()
        elif hit is None or place is None:
            if place is not None and place.window is not None and not self._overridden:
                self._say(safetext.stop(place))
        else:
            self._at_edge(hit, stood, place)
        self._ran, self._back = "", False

    def _at_edge(self, hit: int, stood: int, place: Place) -> None:
        machine = self._windows.machine()
        window = (self._windows.back_edges() if self._back else self._windows.edges(True)).get(hit)
        if self._ran == "jump" and place.window is not None:  # nothing has run yet
            gdb.execute(f"set var $pc = {stood:#x}")
            self._say_why(safetext.jump(hit, place.window, stood))
            self.look()
        elif window is not None and self._back:
            self._say(safetext.back_edge(hit, window))
        elif window is not None:
            self._say(safetext.edge(hit, window, machine.code if machine is not None else None))

    def look(self) -> Place | None:
        """Where the guest stands, with calls allowed or not as it must be there."""
        if running() or gdb.selected_inferior().pid == 0:
            return None
        place = self._windows.here()
        self._limit_calls(place)
        return place

    def _post(self) -> None:
        """Have :meth:`_settle` called once the command at hand has ended, also where no prompt does it; in a script the
        next command settles what is left."""
        later.post(self._settle)

    def _post_lead_out(self) -> None:
        """As :meth:`_post`; a prompt does it sooner."""
        if self._lead_out.wanted:
            later.post(self._lead_out.go)

    def _on_prompt(self) -> None:
        self._settling.run()
        self._lead_out.go()  # in front of the prompt, not behind it
        self._settle()

    def _settle(self) -> None:
        """A command has ended, perhaps with an error."""
        self._command = ""
        self._breaking = False
        self._tell_refused()
        calling, self._calling = self._calling, None
        if calling is not None and self.active:
            self._say_why(safetext.call(calling))

    def _on_breakpoint(self, breakpoint: gdb.Breakpoint) -> None:
        """Somebody made a breakpoint. It must not be deleted in here: others still look at it."""
        if not self.active:
            self._judged.add(breakpoint.number)
            return
        self._judge(breakpoint, self._windows.known() if running() else self._windows.all())
        if self._refused and not self._breaking:  # else a hook follows
            self._post()

    def _judge(self, breakpoint: gdb.Breakpoint, found: list[Window]) -> None:
        """Disable the user's `breakpoint` if it lies in one of the windows `found`; it is deleted later."""
        kinds = (gdb.BP_BREAKPOINT, gdb.BP_HARDWARE_BREAKPOINT)
        if isinstance(breakpoint, _OURS) or breakpoint.type not in kinds or breakpoint.number in self._judged:
            return
        places = addresses(breakpoint)
        if not found or not places:  # nothing is known yet of the guest, or of where it will be
            return
        self._judged.add(breakpoint.number)
        if any(find(found, address) is not None for address in places):
            breakpoint.enabled = False
            self._refused.append(breakpoint)

    def _judge_earlier(self) -> None:
        """Look at the breakpoints that were made before the guest could be."""
        found = self._windows.all() if self.active else []
        for breakpoint in gdb.breakpoints():
            if breakpoint.is_valid() and breakpoint.enabled:
                self._judge(breakpoint, found)
        if self._refused:
            self._post()

    def delete_refused(self) -> safetext.Refused | None:
        """Delete the breakpoints that were refused; why the first was."""
        refused, self._refused = self._refused, []
        first = None
        for breakpoint in refused:
            if breakpoint.is_valid():
                if first is None:
                    first = self._reason(breakpoint.number, addresses(breakpoint))
                else:
                    first.details += (f"also deleted: breakpoint {breakpoint.number}",)
                adapter.forget(breakpoint)
                breakpoint.delete()
        return first

    def _reason(self, number: int, places: list[int]) -> safetext.Refused | None:
        found, calls = self._windows.known(), self._windows.calls()
        for address in places:
            window = find(found, address)
            if window is not None:
                nearest = nearest_safe(found, calls, address)
                return safetext.breakpoint_in(number, address, window, nearest)
        return None

    def _tell_refused(self) -> None:
        """Delete them; they were made by something that no hook follows."""
        refused = self.delete_refused()
        if refused is not None:
            self._say_why(refused)

    def _say_why(self, refused: safetext.Refused) -> None:
        columns = safetext.columns()
        for line in refused.whole(columns and columns - len(PREFIX)).splitlines():
            self._say(line)

    def _on_exit(self, event: Any) -> None:
        self._edges.disarm()
        self._lead_out.forget()
        self._allow_calls()

    def forget(self) -> None:
        """GDB exits: its breakpoints must go before Python does."""
        self._edges.disarm()
        self._lead_out.forget()

    # Calls

    def _limit_calls(self, place: Place | None) -> None:
        if place is not None and place.window is not None and self.active:
            on = bool(gdb.parameter(_MAY_CALL))
            if self._may_call is None:
                self._may_call = on
            if on:  # still, or again: the user may have it so elsewhere
                _set_may_call(False)
        else:
            self._allow_calls()

    def _allow_calls(self) -> None:
        """As the user had it."""
        before, self._may_call = self._may_call, None
        if before is not None:
            _set_may_call(before)


def _remote() -> bool:
    """Whether GDB is connected to a stub, and so perhaps to a guest. Before it is, no command is hooked."""
    connection = getattr(gdb.selected_inferior(), "connection", None)
    return connection is not None and "remote" in connection.type


def _set_may_call(on: bool) -> None:
    gdb.execute(f"set {_MAY_CALL} {'on' if on else 'off'}", to_string=True)


def dprintfs() -> list[tuple[int, int]]:
    """(number, guest virtual address) of each place of the user's dprintfs."""
    shown = str(gdb.execute("maint info breakpoints", to_string=True))
    return [(int(number), int(address, 16)) for number, address in _DPRINTF.findall(shown)]


def addresses(breakpoint: gdb.Breakpoint) -> list[int]:
    """Where a breakpoint is (guest virtual); none while it is pending."""
    if hasattr(breakpoint, "locations"):
        return [location.address for location in breakpoint.locations if location.address is not None]
    try:  # GDB before 13
        _, found = gdb.decode_line(breakpoint.location)
    except gdb.error:
        return []
    return [sal.pc for sal in found or ()]
