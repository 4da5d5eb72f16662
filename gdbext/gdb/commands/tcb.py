"""``ctx tcb``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import gdb

from gdbext.errors import CtxwatchError, UsageError
from gdbext.gdb.declare import Command, argument
from gdbext.gdb.extension import Extension
from gdbext.gdb.needs import Needs

if TYPE_CHECKING:
    from gdbext.gdb.areas import Areas
    from gdbext.gdb.target import Target
    from gdbext.profiles.profile import Profile

ACTIONS = ("list", "show", "add", "watch", "unwatch", "history")


def run(extension: Extension, args: argparse.Namespace) -> None:
    """List save areas, show one, watch its slots."""
    from gdbext.gdb.areas import Areas
    from gdbext.gdb.target import Target

    if args.action not in ACTIONS:
        raise UsageError(f"ctx tcb: what is {args.action!r}?", todo=f"one of {', '.join(ACTIONS)}")
    profile = extension.profile
    if profile is None:
        raise CtxwatchError("no profile", "it tells where a save area keeps which register", "use ctx profile NAME")
    if extension.areas is None:
        extension.areas = Areas()
    _ACTIONS[args.action](extension.areas, profile, Target(), args.words)


def _list(areas: Areas, profile: Profile, target: Target, words: list[str]) -> None:
    found, notes = areas.known(profile, target)
    for start in found:
        slots = {slot.name: slot.value for slot in areas.slots(start, profile, target)}
        rip, rsp = (_hex(slots.get(name)) for name in ("rip", "rsp"))
        watched = [name for at, name in areas.points if at == start]
        gdb.write(f"  {start:#x}  rip {rip}  rsp {rsp}{'  watched: ' + ', '.join(watched) if watched else ''}\n")
    if not found:
        gdb.write("No save area is known here; ctx tcb add EXPRESSION adds one.\n")
    for note in notes:
        gdb.write(f"ctxwatch: profile {profile.name}: {note}\n")


def _show(areas: Areas, profile: Profile, target: Target, words: list[str]) -> None:
    start = _start(areas, profile, target, words[0] if words else None)
    gdb.write(f"save area at {start:#x}\n")
    for slot in areas.slots(start, profile, target):
        was = f"  was {_hex(slot.before)}" if slot.changed else ""
        gdb.write(f"{'*' if slot.changed else ' '} {slot.name:<9} {slot.address:#x}  {_hex(slot.value)}{was}\n")


def _add(areas: Areas, profile: Profile, target: Target, words: list[str]) -> None:
    if not words:
        raise UsageError("ctx tcb add needs an expression", todo="give an address: ctx tcb add [gs:8]")
    gdb.write(f"Added the save area at {areas.add(' '.join(words), profile, target):#x}.\n")


def _watch(areas: Areas, profile: Profile, target: Target, words: list[str]) -> None:
    start, name = _slot(areas, profile, target, words, "watch")
    areas.watch(start, name, profile, target)
    gdb.write(f"Watching slot {name} of the save area at {start:#x}; the guest is not stopped by it.\n")


def _unwatch(areas: Areas, profile: Profile, target: Target, words: list[str]) -> None:
    start = _start(areas, profile, target, words[1]) if len(words) > 1 else None
    count = areas.unwatch(start, words[0] if words else None)
    gdb.write(f"{count} slot{'s' * (count != 1)} no longer watched.\n")


def _history(areas: Areas, profile: Profile, target: Target, words: list[str]) -> None:
    lines = areas.history(*_slot(areas, profile, target, words, "history"))
    for line in lines or ["no store was seen yet"]:
        gdb.write(f"  {line}\n")


def _slot(areas: Areas, profile: Profile, target: Target, words: list[str], action: str) -> tuple[int, str]:
    if not words:
        raise UsageError(f"ctx tcb {action} needs a slot", todo=f"for example ctx tcb {action} rflags")
    return _start(areas, profile, target, words[1] if len(words) > 1 else None), words[0]


def _start(areas: Areas, profile: Profile, target: Target, text: str | None) -> int:
    """The area meant by `text`: an address; without one the current area."""
    if text is not None:
        try:
            start = int(text, 0)
        except ValueError:
            start = -1
        if not 0 <= start < 1 << 64:
            raise UsageError(f"{text!r} is no address", todo="ctx tcb list shows the areas")
        return start
    found, notes = areas.known(profile, target)
    if not found:
        raise CtxwatchError("no save area is known here", notes[0] if notes else "", "ctx tcb add EXPRESSION adds one")
    return found[0]


def _hex(value: int | None) -> str:
    return "unreadable" if value is None else f"{value:#x}"


_ACTIONS = {
    "list": _list,
    "show": _show,
    "add": _add,
    "watch": _watch,
    "unwatch": _unwatch,
    "history": _history,
}

COMMAND = Command(
    name="tcb",
    summary="List the guest's save areas, show one, watch its slots.",
    text="""
        A save area is the memory in which a context is kept; the profile says which register lies where. list: the
        areas known, the current one first. show [AREA]: its slots, those marked * that changed since they were last
        shown. add EXPRESSION: one more, for example [gs:8]. watch SLOT [AREA]: note each store into a slot by a
        hardware watchpoint, four at most, without stopping the guest. history SLOT [AREA]: the stores noted.
        unwatch [SLOT [AREA]]: no longer; without a slot, none.
    """,
    example="""
ctx profile nrk
ctx tcb show
ctx tcb watch rflags
continue
ctx tcb history rflags
""",
    run=run,
    recorded=True,
    needs=Needs.GUEST,
    arguments=(
        argument("action", "list, show, add, watch, unwatch or history", nargs="?", default="list", metavar="ACTION"),
        argument("words", "a slot, an area's address, an expression", nargs="*", metavar="WORD"),
    ),
    complete=lambda: ACTIONS,
)
