"""``ctx replay``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import gdb

from gdbext.errors import CtxwatchError, UsageError
from gdbext.gdb import text
from gdbext.gdb.declare import Command, argument
from gdbext.gdb.extension import Extension
from gdbext.gdb.threads import unsignalled

if TYPE_CHECKING:
    from gdbext.report.walked import Walked

_MOVES: Final = ("goto", "next-finding", "prev-finding", "next-event", "prev")
_ANSWERS: Final = ("status", "gs", "info", "areas", "findings", "print", "x")


def run(extension: Extension, args: argparse.Namespace) -> None:
    """Open or close a recording, move in it, ask it."""
    words = [word for word in args.words if word.strip()]
    walked = extension.walked
    if walked is None:
        if words[:1] == ["off"] or (words and words[0] in (*_MOVES, *_ANSWERS) and not os.path.exists(words[0])):
            raise UsageError("no recording is open", todo="ctx replay FILE opens one")
        _open(extension, words)
    elif not words:
        text.show(walked.here())
    elif words == ["off"]:
        extension.walked = None
        walked.close()
        gdb.write(f"{walked.walk.path} is closed.\n")
    elif words[0] in _MOVES:
        _move(walked, words)
        text.show(walked.here())
    elif len(words) == 1 and os.path.isfile(os.path.expanduser(words[0])):
        extension.walked = None
        walked.close()
        _open(extension, words)
    else:
        text.show(walked.answer(" ".join(words)))


def _open(extension: Extension, words: Sequence[str]) -> None:
    if len(words) != 1:
        raise UsageError("ctx replay needs a recording", todo="ctx replay FILE opens one")
    if extension.watch is not None:
        raise CtxwatchError("a guest is watched", "what ctx shows is of it", "end that with ctx watch off first")
    try:
        with unsignalled():  # Arrow has threads of its own
            from gdbext.report.walked import Walked

            walked = Walked(Path(os.path.expanduser(words[0])), text.picture)
    except ImportError as error:
        raise CtxwatchError("recordings need pyarrow", str(error), "run scripts/bootstrap") from error
    extension.walked = walked
    text.show(walked.answer("status"))


def _move(walked: Walked, words: Sequence[str]) -> None:
    name, *rest = words
    numbers = [_number(name, word) for word in rest]
    if len(numbers) > (name in ("goto", "next-event", "prev")) or (name == "goto" and not numbers):
        raise UsageError(f"ctx replay {name}: {' '.join(rest) or 'an event is missing'}", todo="help ctx replay")
    walk, count = walked.walk, numbers[0] if numbers else 1
    if name == "goto":
        walk.goto(count)
    elif name == "next-finding":
        walk.next_finding()
    elif name == "prev-finding":
        walk.prev_finding()
    else:
        walk.step(count if name == "next-event" else -count)


def _number(name: str, word: str) -> int:
    try:
        return int(word, 0)
    except ValueError:
        raise UsageError(f"ctx replay {name}: {word!r} is no number") from None


COMMAND = Command(
    name="replay",
    summary="Walk a recording, event by event, with neither QEMU nor a guest.",
    text="""
        ctx replay FILE opens a recording and stands at its first event; the rules go over it once. An event's
        instruction is about to run, as at a breakpoint. goto EVENT, next-finding, prev-finding, next-event [N] and
        prev [N] move. status, gs [N], info registers [NAME...], areas, findings, print and x, behind ctx replay, tell
        what was so then: for an entry the context that was interrupted, for an exit the one that is about to be
        resumed. $pc is the instruction at hand, $rip the context's.

        While a recording is open, ctx status, ctx gs, ctx tcb and ctx findings tell of it, too. What a recording
        cannot do (continue, step, stop somewhere, memory that was not captured) is refused by name. ctx replay off
        closes it; ctx replay alone says where it stands.
    """,
    example="""
ctx replay boot.arrow
ctx replay next-finding
ctx replay info registers rip rflags
ctx replay x/i $pc
ctx replay off
""",
    run=run,
    arguments=(
        argument(
            "words",
            "a recording, a move, a question, or off",
            nargs=argparse.REMAINDER,
            metavar="FILE|MOVE|QUESTION|off",
        ),
    ),
    complete=lambda: (*_MOVES, *_ANSWERS, "off"),
    files=True,
)
