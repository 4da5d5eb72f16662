"""``ctxwatch repl``: from what was asked to a prompt, and out again in good order."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gdbext.errors import CtxwatchError, printable
from gdbext.repl import blocks, config
from gdbext.repl.debugger import Gdb
from gdbext.repl.lines import Lines
from gdbext.repl.screen import ScriptScreen, TerminalScreen
from gdbext.repl.session import Session

if TYPE_CHECKING:
    from prompt_toolkit.history import History


_LEAVING: Final = 15.0
"""Seconds that leaving a guest in good order may take; children that are left then end with us."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to begin with: the command lines of the REPL that the options stand for, and the settings."""

    first: str = ""
    keys: str | None = None


def run(request: Request) -> int:
    """Run the REPL until the user leaves; returns the exit status.

    Raises CtxwatchError for unusable settings, and if what it was to begin with cannot be had.
    """
    settings = config.load()
    if request.keys is not None:
        settings = config.Config(keys=request.keys, gdbinit=settings.gdbinit, suggest=settings.suggest)
    return asyncio.run(_main(request, settings))


async def _main(request: Request, settings: config.Config) -> int:
    start = functools.partial(Gdb.start, arguments=() if settings.gdbinit else ("-nx",))
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        screen: TerminalScreen = ScriptScreen()
        session = Session(screen, settings, start)
        return await _finally_closed(session, screen, _script(session, request.first))
    from gdbext.repl.prompt import Prompt

    screen = TerminalScreen()
    session = Session(screen, settings, start, lambda question: prompt.ask(question))
    prompt = Prompt(session, screen, _history(screen))
    return await _finally_closed(session, screen, prompt.loop(request.first))


async def _finally_closed(session: Session, screen: TerminalScreen, work: Coroutine[Any, Any, int]) -> int:
    """Do `work`, leave everything in good order whatever ends it, and return the exit status. Raises OSError where the
    output took no more."""
    signals: list[int] = []
    task = asyncio.ensure_future(work)

    def end(signum: int) -> None:
        signals.append(signum)
        task.cancel()

    def give_up() -> None:
        task.cancel()

    for signum in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signum, end, signum)
    screen.fail = give_up
    try:
        status = await task
    except asyncio.CancelledError:
        status = 128 + (signals[0] if signals else signal.SIGINT)
    finally:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(session.close(), _LEAVING)
        screen.flush()
    if screen.failed is not None:
        raise screen.failed
    return status


async def _script(session: Session, first: str) -> int:
    """Without a terminal: every line as it comes, each after the guest stands; the first refusal ends it, status 2."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, session.interrupt)
    await session.do(first)
    lines = Lines(sys.stdin.fileno())
    try:
        return await _each(session, lines)
    finally:
        lines.leave()


async def _each(session: Session, lines: Lines) -> int:
    """Run each of `lines`; the exit status."""
    done, held = True, ""
    while done and not session.leaving:
        line = await asyncio.to_thread(lines.next)
        held += line
        if line and blocks.depth(held):
            continue
        await session.live.stopped()
        done = not held.strip() or await session.run(held)
        held = ""
        if not line:
            break
    await session.live.stopped()
    return 0 if done else CtxwatchError.status


def _history(screen: TerminalScreen) -> History:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path: Path = config.history_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("a"):
            path.chmod(0o600)
    except OSError as error:
        screen.note(f"history is not kept: {printable(str(path))}: {error.strerror}")
        return InMemoryHistory()
    return FileHistory(str(path))
