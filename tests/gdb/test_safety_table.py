"""Every stepping and breakpoint command in and in front of every kind of window, typed, from a script and through the
machine interface: real GDBs, real guests. What they did is the table of docs/safety.md."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.gdb.conftest import Boot, bug_free, lasting
from tests.gdb.probed import Probed
from tests.gdb.sessions import Mi, Typed, script

pytestmark = [pytest.mark.gdb, pytest.mark.guest, pytest.mark.slow]

KINDS: Final = ("syscall-entry", "interrupt-entry", "exit (sysret)", "exit (iret)", "shadow", "ist-handler")
NATURAL: Final = tuple(kind for kind in KINDS if kind != "shadow")
"""Those that the guest comes by without being made to."""
FUNCTIONS: Final = ("shadow", "ist-handler")
"""Where the place in front lies in a function that can be finished."""
WAYS: Final = ("typed", "script", "MI")
REFRESH: Final = "CTXWATCH_REFRESH_DOCS"
DOC: Final = Path(__file__).parents[2] / "docs" / "safety.md"
BEGIN: Final = f"<!-- made by {REFRESH}=1 python -m pytest tests/gdb/test_safety_table.py -->\n"
END: Final = "<!-- end -->\n"

# Command of the console, the machine interface's own (or None), with {} for an address in the window.
STEPS: Final = (
    ("stepi 20", "-exec-step-instruction 20"),
    ("nexti 20", "-exec-next-instruction 20"),
    ("step 20", "-exec-step 20"),
    ("next 20", "-exec-next 20"),
    ("until *{}", "-exec-until *{}"),
    ("advance *{}", None),
    ("finish", "-exec-finish"),
    ("jump *{}", "-exec-jump *{}"),
)
REVERSED: Final = (("reverse-stepi", "-exec-step-instruction --reverse"), ("reverse-next", "-exec-next --reverse"))
CALLS: Final = (("call f()", '-data-evaluate-expression "f()"'), ("print f()", '-data-evaluate-expression "f()"'))
BREAKS: Final = (
    ("break *{}", "-break-insert *{}"),
    ("tbreak *{}", "-break-insert -t *{}"),
    ("hbreak *{}", "-break-insert -h *{}"),
    ("thbreak *{}", "-break-insert -t -h *{}"),
)
REFUSED: Final = re.compile(r" refused: | refused and deleted: |may-call-functions is off")
_CALLED: Final = "((int(*)(void))0xffffffff80100000)()"


@dataclass
class Way:
    """A way for a command to arrive. ``run`` takes a command of the console and that of the machine interface."""

    name: str
    say: Callable[[str], str]
    run: Callable[[str, str | None], str]

    def facts(self, code: str) -> dict[str, Any]:
        """What safety_places tells."""
        said = self.say(f"python {code}")
        for _ in range(20):  # through the machine interface a command that ran the guest may tell more behind its stop
            if "FACTS" in said:
                break
            said += self.say("echo")
        said = said.replace("\\", "")
        found = re.search(r"FACTS (\{.*?\})", said)
        assert found, said
        return dict(json.loads(found[1]))


@contextlib.contextmanager
def ways(boot: Boot, tmp_path: Path) -> Iterator[list[Way]]:
    """Two GDBs, each with a guest that is up."""
    start = ["python import sys; sys.path.append('.')", "python from tests.gdb.safety_places import *"]
    first, second = boot("clean-osdev"), boot("clean-osdev")
    with Typed(*first.connect, *start) as typed, Mi(*second.connect, *start) as mi:
        for say in (typed.type, mi.say):
            say("tbreak tick if ticks >= 10")
            say("continue")
        yield [
            Way("typed", typed.type, lambda console, _: typed.type(console)),
            Way("script", typed.type, lambda console, _: typed.type(script(tmp_path, console))),
            Way("MI", mi.say, lambda console, own: (mi.ask(own) if own else mi.say(console)) + mi.say("echo")),
        ]


def quoted(text: str) -> str:
    return text.replace("f()", _CALLED)


def inside(way: Way, kind: str) -> Iterator[tuple[str, str]]:
    """(command, what it did) for a guest that stands in a window."""
    way.facts(f"inside('{kind}')")
    at = way.facts(f"tell('{kind}')")
    assert at["window"], (kind, at)
    for console, own in (*STEPS, *REVERSED, *CALLS, *BREAKS):
        address = hex(at["target"])
        said = way.run(quoted(console.format(address)), quoted(own.format(address)) if own else None)
        bug_free(said)
        after = way.facts(f"tell('{kind}')")
        assert after["pc"] == at["pc"], (way.name, kind, console, said)
        assert after["breakpoints"] == [], (way.name, kind, console, said)
        assert REFUSED.search(said), (way.name, kind, console, said)
        yield console.format("ADDRESS"), "refused"


def in_front(way: Way, kind: str) -> Iterator[tuple[str, str]]:
    """(command, what it did) for a guest that stands in front of one."""
    for console, own in STEPS:
        if console == "finish" and kind not in FUNCTIONS:
            yield console, "-"
            continue
        before = way.facts(f"in_front('{kind}')")
        assert not before["window"], (kind, before)
        address = hex(way.facts(f"tell('{kind}')")["target"])
        said = way.run(console.format(address), own.format(address) if own else None)
        bug_free(said)
        after = way.facts(f"tell('{kind}')")
        if REFUSED.search(said):
            assert after["pc"] == before["pc"], (way.name, kind, console, said)
            yield console.format("ADDRESS"), "refused"
        elif "Cannot access memory" in said or "Command aborted" in said:  # GDB looks for a caller where there is none
            assert after["pc"] == before["pc"], (way.name, kind, console, said)
            yield console.format("ADDRESS"), "-"
        elif "edge of a window" in said:
            assert after["edge"], (way.name, kind, console, said)
            yield console.format("ADDRESS"), "stops at the edge"
        else:
            assert not after["window"], (way.name, kind, console, said)
            assert after["pc"] != before["pc"], (way.name, kind, console, said)
            yield console.format("ADDRESS"), "allowed"


def rows(found: dict[tuple[str, str, str], str]) -> Iterator[str]:
    """The lines of a table: (command, kind, way) → outcome; one word where all ways agree."""
    yield "| command | " + " | ".join(KINDS) + " |"
    yield "|---" * (len(KINDS) + 1) + "|"
    for command in dict.fromkeys(command for command, _, _ in found):
        cells = []
        for kind in KINDS:
            outcomes = {way: found[command, kind, way] for way in WAYS}
            agreed = len(set(outcomes.values())) == 1
            cells.append(outcomes["MI"] if agreed else "; ".join(f"{way}: {done}" for way, done in outcomes.items()))
        yield f"| `{command}` | " + " | ".join(cells) + " |"


def test_every_command_at_every_kind_of_window_by_every_way(
    boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lasting(monkeypatch, 200_000)
    within: dict[tuple[str, str, str], str] = {}
    ahead: dict[tuple[str, str, str], str] = {}
    with ways(boot, tmp_path) as all_ways:
        for way in all_ways:
            for kind in KINDS:
                within |= {(command, kind, way.name): done for command, done in inside(way, kind)}
                ahead |= {(command, kind, way.name): done for command, done in in_front(way, kind)}
    made = "\n".join(["In a window:", "", *rows(within), "", "In front of one:", "", *rows(ahead), ""])
    text = DOC.read_text("utf-8")
    head, _, rest = text.partition(BEGIN)
    shown, _, tail = rest.partition(END)
    if os.environ.get(REFRESH):
        DOC.write_text(head + BEGIN + made + END + tail, "utf-8")
        shown = made
    assert shown == made, f"docs/safety.md is stale: {BEGIN}"


def test_the_guest_lives_through_200_refusals_and_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    lasting(monkeypatch, 8_000)
    chance = random.Random(4)
    with Probed("clean-osdev") as guest, Typed(*guest.connect) as gdb:
        for line in ("python import sys; sys.path.append('.')", "python from tests.gdb.safety_places import *"):
            gdb.type(line)
        assert "through the probe" in gdb.type("ctx watch --via probe")
        gdb.type("tbreak tick if ticks >= 10")
        gdb.type("continue")
        for turn in range(200):
            bug_free(gdb.type(f"python inside('{chance.choice(NATURAL)}')"))
            command = chance.choice(("stepi", "nexti 3", "step", "next", "finish", "until", "jump *$pc", "break *$pc"))
            assert REFUSED.search(gdb.type(command)), (turn, command)
            assert "Arrived at" in gdb.type("ctx skip"), turn
        gdb.type("continue &")
        guest.printed("guest: done")
        assert "impossible 0 corrupt 0" in guest.serial.read_text("utf-8")
        assert "No findings." in gdb.type("ctx findings")
