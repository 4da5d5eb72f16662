"""``status``."""

from __future__ import annotations

import argparse

from gdbext.repl.connection import State
from gdbext.repl.declare import Command
from gdbext.repl.session import Session


async def run(session: Session, args: argparse.Namespace) -> None:
    """Say where the REPL stands."""
    if session.recorded is not None:
        await session.recorded.run("status")
        return
    live, facts = session.live, session.live.facts
    await live.ask_state()
    title = live.link.title if live.link is not None else "no guest"
    state = live.connection
    session.screen.text(f"{title}: {state.state.value}" + (f" ({state.reason})" if state.reason else ""))
    if state.connected:
        cpu = "" if facts.cpu is None else f"CPU {facts.cpu}"
        cpl = "" if facts.cpl is None else f"CPL {facts.cpl}"
        parity = f"GS {facts.parity}" if facts.parity else ""
        session.screen.text("  " + ", ".join(filter(None, (cpu, cpl, parity))))
        if state.state is State.STOPPED and facts.pc is not None:
            where = f"in a window ({facts.window}): {facts.half_switched}" if facts.window else "in no window"
            session.screen.text(f"  {facts.pc:#x} is {where}")
        session.screen.text(f"  watch: {facts.watching}, {facts.events} events")
    count = len(live.findings)
    session.screen.text(f"  {count} finding{'s' * (count != 1)}")


COMMAND = Command(
    name="status",
    summary="Show the guest's state: running or stopped, CPU, privilege, GS, window, events, findings.",
    text="""
        In a recording it is the state as of the event at hand. ctx status tells more of a watch: its breakpoints, the
        guest's tables and entries.
    """,
    example="status",
    run=run,
    topic="watching",
)
