"""The extension's state in this GDB: the watch, if there is one, and what GDB tells of its target."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gdb

from gdbext.errors import CtxwatchError, EnvironmentUnusable, printable
from gdbext.gdb import adapter, safetext, text
from gdbext.gdb.guest import GdbGuest, GdbNames
from gdbext.gdb.interrupts import Interrupts
from gdbext.gdb.judging import Judging
from gdbext.gdb.needs import Needs
from gdbext.gdb.safety import PREFIX, Safety
from gdbext.gdb.sinks import EngineSink, Sink, StoppedSource, StreamSink
from gdbext.gdb.stops import Settling
from gdbext.gdb.stores import StorePoints
from gdbext.gdb.target import STOP_IT, Target, running
from gdbext.gdb.watch import Watch, asked_for
from gdbext.gdb.watching import Watching
from gdbext.gdb.windows import Windows
from gdbext.rules.engine import Counts
from gdbext.rules.finding import Finding
from gdbext.sources.knowledge import Knowledge

if TYPE_CHECKING:
    from gdbext.gdb.areas import Areas
    from gdbext.profiles.profile import Profile
    from gdbext.report.walked import Walked


class Extension:
    """At most one watch, and the engine of the last one: its findings stay to be looked at."""

    def __init__(self) -> None:
        self.watch: Watching | None = None
        self.judging: Judging | None = None
        self.interrupts = Interrupts()
        self.profile: Profile | None = None
        self.areas: Areas | None = None
        self.walked: Walked | None = None
        """The recording that is open."""
        self.windows = Windows(lambda: self.watch, kernel_file)
        self.safety = Safety(self.windows, lambda: self.watch, self.say)
        self._lines: list[str] = []
        self._posted = False
        self._runs = False
        self._settling = Settling(self._stopped)

    # What commands ask for

    def check(self, needs: Needs) -> None:
        """Raise CtxwatchError unless what a command needs is so."""
        self._settling.run()
        if needs is not Needs.NOTHING and self.walked is not None:
            raise CtxwatchError("a recording is open", "what ctx shows is of it", "close it with ctx replay off first")
        if needs in (Needs.WATCH, Needs.RUNNING_WATCH) and self.watch is None:
            raise CtxwatchError("nothing is watched", todo="use ctx watch first")
        if needs is not Needs.NOTHING:
            inferior = gdb.selected_inferior()
            if inferior.pid == 0:
                raise CtxwatchError("no guest", "GDB is not connected to one", "use target remote HOST:PORT")
            if running() and needs is not Needs.RUNNING_WATCH:
                raise CtxwatchError("the guest is running", todo=STOP_IT)

    def choose_profile(self, name: str | None) -> None:
        """The profile for the next watch; raises UsageError if there is none of that name."""
        from gdbext.profiles.profile import find  # with its schema checker it is slow to load, and seldom needed

        self.profile = find(os.path.expanduser(name)) if name is not None else None

    def start(self, codes: Collection[str] | None, halt: bool, via: str, stream: str | None) -> Watching:
        """Begin to watch; raises CtxwatchError and leaves nothing behind if that cannot be.

        via: probe, gdbstub, or auto for the probe if the guest has one.  stream: the socket that events go to.
        """
        if self.watch is not None:
            raise CtxwatchError("already watching", todo="end it with ctx watch off first")
        target = Target()
        watch: Watching
        if stream is None and (via == "probe" or (via == "auto" and has_probe(target))):
            watch = self._through_probe(target, codes, halt)
        else:
            watch = self._through_breakpoints(target, codes, halt, stream)
        self.watch = watch
        self.judging = watch.judging or self.judging
        return watch

    def _through_probe(self, target: Target, codes: Collection[str] | None, halt: bool) -> Watching:
        from gdbext.gdb.probed import ProbeWatch
        from gdbext.profiles.profile import find

        # A profile that knows nothing has the save areas learnt from the guest's code.
        return ProbeWatch(target, self.profile or find("generic"), codes, halt, self.say, self._found)

    def _through_breakpoints(
        self, target: Target, codes: Collection[str] | None, halt: bool, stream: str | None
    ) -> Watching:
        sink: Sink
        judging = None
        stores = StorePoints(target)
        if stream is not None:
            sink = StreamSink(stream, target.read, stores.watch, halt)
        else:
            knowledge = Knowledge(self.profile, GdbNames(), self.say) if self.profile is not None else None
            source = StoppedSource(target.read, stores.watch)
            judging = Judging(source, GdbGuest(target), knowledge, codes, self._found)
            sink = EngineSink(judging, halt)
        watch = Watch(target, sink, judging, stores, kernel_file(), self.say, self.interrupts)
        try:
            watch.start()
        except BaseException:
            watch.close()
            raise
        return watch

    @property
    def findings(self) -> list[Finding]:
        """Those of the watch at hand, or of the last one."""
        with self.watch.held() if self.watch is not None else contextlib.nullcontext():
            return self.judging.findings if self.judging is not None else []

    @property
    def counts(self) -> Counts | None:
        """What was seen in the watch at hand, or in the last one; None if there was none."""
        return self.judging.counts if self.judging is not None else None

    def end(self) -> Watching | None:
        """End the watch, if there is one, and return it."""
        watch, self.watch = self.watch, None
        self.interrupts.release()
        if watch is not None:
            watch.close()
        return watch

    def say(self, line: str) -> None:
        """Show a line, from any thread. It may come from inside a stop, where GDB's pager must not ask: so where there
        is one, the line is written as soon as GDB is back in its event loop."""
        self._lines.append(line)
        if threading.current_thread() is threading.main_thread() and not _pages():
            self.flush()
        elif self._runs and not self._posted:
            self._posted = True
            gdb.post_event(self.flush)

    def flush(self) -> None:
        """Write what was said."""
        self._posted = False
        lines, self._lines = self._lines, []
        if not lines:
            return
        if adapter.serves():
            adapter.say("".join(f"{PREFIX}{printable(line)}\n" for line in lines))
            return
        with gdb.with_parameter("pagination", False) if _pages() else contextlib.nullcontext():
            columns = safetext.columns()
            for line in lines:
                whole = PREFIX + printable(line)
                gdb.write((safetext.filled(whole, columns, 4) if columns else whole) + "\n")
            gdb.flush()

    def _found(self, finding: Finding) -> None:
        self.say(text.line(finding))

    # What GDB tells

    def connect_events(self) -> None:
        """Listen to what happens to the target."""
        gdb.events.cont.connect(self._on_continue)
        gdb.events.stop.connect(self._on_stop)
        gdb.events.before_prompt.connect(self._on_prompt)
        gdb.events.exited.connect(self._on_exit)
        if hasattr(gdb.events, "connection_removed"):
            gdb.events.connection_removed.connect(self._on_connection_removed)
        # Breakpoints of Python that outlive Python crash GDB when it exits.
        if hasattr(gdb.events, "gdb_exiting"):
            gdb.events.gdb_exiting.connect(self._on_exiting)
        else:
            atexit.register(self._forget_all)

    def _on_continue(self, event: Any) -> None:
        self._settling.drop()
        self._runs = True
        if isinstance(self.watch, Watch):
            self.interrupts.hold()

    def _on_prompt(self) -> None:
        """A command has ended; if it was a resumption that failed, no event told."""
        if not running():
            self._runs = False
            self.interrupts.release()
        self._settling.run()
        self.flush()

    def _on_stop(self, event: Any) -> None:
        """The guest stands still for the user; a Ctrl-C that comes now asks for nothing more."""
        with contextlib.suppress(KeyboardInterrupt):
            self._runs = False
            self.interrupts.release()
            if self.watch is not None and getattr(event, "stop_signal", None) == "SIGQUIT":  # QEMU's for a shutdown
                self.watch.shut_down(died=not asked_for(self.watch.target))
            self._settling.stop(event)

    def _stopped(self) -> None:
        watch = self.watch
        if watch is not None:
            watch.tidy()
            why = watch.stopped()
            if why:
                self.say(why)
        self.flush()

    def _on_exiting(self, event: Any) -> None:
        self._forget_all()

    def _forget_all(self) -> None:
        self.end()
        self.safety.forget()
        if self.areas is not None:
            self.areas.unwatch()

    def _on_exit(self, event: Any) -> None:
        if hasattr(event, "exit_code"):
            self._lost("QEMU has ended (to see what ended it, start it with -action reboot=shutdown,shutdown=pause)")
        else:
            self._lost("the connection to the guest is closed")

    def _on_connection_removed(self, event: Any) -> None:
        if self.watch is not None and event.connection is self.watch.target.connection:
            self._lost("the connection to the guest is closed")

    def _lost(self, what: str) -> None:
        watch = self.end()
        if watch is not None:
            self.say(f"{what}; the watch has ended: {watch.ending()}")


def _pages() -> bool:
    """Whether GDB may stop its output to ask. (GDB crashes if it exits with an event still posted: a script that ends
    at a stop gets its lines at once.)"""
    return bool(os.isatty(1) and gdb.parameter("pagination") and gdb.parameter("height"))


def kernel_file() -> Path | None:
    """The kernel image that GDB was given with ``file``, if there is one."""
    name = gdb.current_progspace().filename
    return Path(name) if name and os.path.isfile(name) else None


def has_probe(target: Target) -> bool:
    """Whether the guest's QEMU has loaded the probe where it can be found."""
    from gdbext.gdb.probed import find

    try:
        find(target)
    except EnvironmentUnusable:
        return False
    return True
