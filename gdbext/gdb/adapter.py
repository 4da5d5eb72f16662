"""GDB's debug adapter (``gdb -i=dap``, GDB 14 or later), made to tell its client what it keeps to itself.

It runs commands with their output taken away, says nothing where a step fails, shows internal breakpoints as the
user's, and calls a breakpoint verified that is deleted as soon as it is made. Its own modules are used here, each only
where it has what this takes; a GDB that serves no client has none of them loaded.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, Final

import gdb

from gdbext.errors import CtxwatchError

_ANSWERS: Final = "gdb.dap.evaluate"
"""What runs a command of the client's console: its errors are the answer."""


def serves() -> bool:
    """Whether this GDB serves a client of the adapter."""
    return _part("server", "send_event") is not None


def say(text: str) -> None:
    """Show `text` in the client's console."""
    _send("output", {"category": "console", "output": text})


def cancelled(text: str) -> None:
    """A command is cancelled for the reason `text`: show it, and that the guest stands still. Without a client, and
    where it gets the error as an answer, nothing is done."""
    if serves() and not _answered():
        say(f"ctxwatch: {text}\n")
        gdb.post_event(_stands)  # behind the answer, which calls the step begun


def connect(refused: Callable[[], CtxwatchError | None]) -> None:
    """Keep internal breakpoints from the client, and tell it of breakpoints that are refused.

    refused: called when one was made; deletes it if it was refused, and says why.
    """
    for event, name in (
        (gdb.events.breakpoint_created, "_bp_created"),
        (gdb.events.breakpoint_modified, "_bp_modified"),
        (gdb.events.breakpoint_deleted, "_bp_deleted"),
    ):
        tell = _part("breakpoint", name)
        if tell is not None:
            event.disconnect(tell)
            event.connect(functools.partial(_tell_visible, tell))
    make = _part("breakpoint", "_set_one_breakpoint")
    if make is not None:
        sys.modules["gdb.dap.breakpoint"]._set_one_breakpoint = functools.partial(_make, make, refused)  # type: ignore[attr-defined]


def forget(breakpoint: gdb.Breakpoint) -> None:
    """`breakpoint` is about to be deleted: the adapter must not use it again when the client sends its list anew."""
    for made in (_part("breakpoint", "breakpoint_map") or {}).values():
        for key in [key for key, one in made.items() if one is breakpoint]:
            del made[key]


def _part(module: str, name: str) -> Any:
    return getattr(sys.modules.get(f"gdb.dap.{module}"), name, None)


def _send(event: str, body: dict[str, Any]) -> None:
    send = _part("server", "send_event")
    if send is not None:
        send(event, body)


def _stands() -> None:
    thread = gdb.selected_thread()
    if thread is not None:
        _send("stopped", {"reason": "step", "threadId": thread.global_num, "allThreadsStopped": True})


def _answered() -> bool:
    frame = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") != _ANSWERS:
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None


def _tell_visible(tell: Callable[[gdb.Breakpoint], None], breakpoint: gdb.Breakpoint) -> None:
    if breakpoint.visible:
        tell(breakpoint)


def _make(make: Callable[..., gdb.Breakpoint], refused: Callable[[], CtxwatchError | None], **args: Any) -> Any:
    made = make(**args)
    reason = refused()
    if reason is not None:
        raise gdb.GdbError(str(reason))
    return made
