"""The prompt and the status line at the bottom."""

from __future__ import annotations

from prompt_toolkit.formatted_text.utils import fragment_list_width

from gdbext.errors import printable
from gdbext.repl.connection import State
from gdbext.repl.highlight import Fragments
from gdbext.repl.session import Session


def message(session: Session) -> Fragments:
    """The prompt: where the guest is, if that is not simply stopped."""
    if session.recorded is not None:
        return [("class:prompt", f"(ctx event {session.recorded.event}) ")]
    state = session.live.connection.state
    if state is State.STOPPED and session.live.facts.window:
        return [("class:prompt.window", "(ctx window) ")]
    if state in (State.STOPPED, State.IDLE):
        return [("class:prompt", "(ctx) ")]
    style = f"class:prompt.{state.value}" if state in (State.RUNNING, State.DEAD) else "class:prompt"
    return [(style, f"(ctx {state.value}) ")]


def toolbar(session: Session) -> Fragments:
    """The status line: what matters most comes first, and what does not fit the terminal is left out."""
    columns = session.screen.columns
    if session.reading:
        return _joined([[("class:toolbar.state", printable(session.reading))]], columns)
    if session.recorded is not None:
        return _joined([[("", printable(part))] for part in session.recorded.toolbar()], columns)
    live = session.live
    state, facts = live.connection.state, live.facts
    parts: list[Fragments] = [[("class:toolbar.state", state.value)]]
    if live.connection.connected:
        if facts.cpu is not None:
            parts.append([("", f"CPU {facts.cpu}")])
        if facts.cpl is not None:
            parts.append([("", f"CPL {facts.cpl}")])
        if facts.parity:
            parts.append([("", f"GS {facts.parity}")])
        if facts.window:
            parts.append([("class:toolbar.warning", f" in window: {facts.window} ")])
        if facts.watching != "no":
            parts.append([("", _rate(facts.rate) if state is State.RUNNING else f"{facts.events} events")])
    count = len(live.findings)
    parts.append([("class:toolbar.warning" if count else "", f"{count} finding{'s' * (count != 1)}")])
    if live.doing:
        parts.append([("", printable(live.doing)[:40])])
    if live.link is not None:
        parts.append([("", printable(live.link.title))])
    return _joined(parts, columns)


def _rate(rate: float) -> str:
    return f"{rate / 1000:.1f}k events/s" if rate >= 10_000 else f"{rate:.0f} events/s"


def _joined(parts: list[Fragments], columns: int) -> Fragments:
    line: Fragments = [("", " "), *parts[0]]
    for part in parts[1:]:
        more: Fragments = [("", " │ "), *part]
        if fragment_list_width([*line, *more]) > columns:
            break
        line += more
    return line
