"""A recording at the prompt: what of GDB's commands it can answer, and what it refuses by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from gdbext.arch.registers import GPR32
from gdbext.errors import CtxwatchError, NotCapable, UsageError
from gdbext.recording.walk import Register, Walk
from gdbext.repl import examine, typed
from gdbext.repl.facts import Seen
from gdbext.repl.screen import Screen, rendered
from gdbext.rules.finding import Finding
from gdbext.rules.parity import KERNEL, UNKNOWN

_PARITY: Final = {UNKNOWN: "unknown", KERNEL: "kernel"}
_STOPS: Final = re.compile(r"(?:h?br?e?a?k?|tb(?:r\w*)?|thb(?:r\w*)?|hb(?:r\w*)?|a?r?watch|cat(?:ch)?)(?![\w-])")
_ALIASES: Final = {"sp": "rsp", "fp": "rbp", "eflags": "rflags"}


class Recorded:
    """The recording that is open and where it is looked at. Raises RecordingError where it is none."""

    def __init__(self, path: Path, screen: Screen, progress: Callable[[int], None] | None = None) -> None:
        self.walk = Walk(path, progress)
        self.screen = screen
        self._answers: dict[str, Callable[[str], None]] = {
            "status": self._status,
            "findings": self._findings,
            "gs": self._gs,
            "tcb": self._areas,
            "areas": self._areas,
            "info": self._info,
            "i": self._info,
            "p": self._print,
            "print": self._print,
            "x": self._examine,
        }

    @property
    def event(self) -> int:
        """The event it stands at."""
        return self.walk.event

    def toolbar(self) -> list[str]:
        """What the status line says."""
        moment, walk = self.walk.moment(), self.walk
        parity = _PARITY.get(moment.parity.get(moment.cpu, UNKNOWN), "user")
        return [
            "recording" + (" (incomplete)" if walk.flaw else ""),
            walk.path.name,
            f"event {moment.event} of {walk.last}",
            f"CPU {moment.cpu}",
            f"CPL {int(walk.row['cs'][0]) & 3}",
            f"GS {parity}",
            f"{len(moment.findings)} of {len(walk.findings)} findings",
        ]

    async def run(self, line: str) -> None:
        """Answer one line. Raises CtxwatchError for what a recording cannot do."""
        words = line.split(None, 1)
        if words[0] == "ctx" and len(words) > 1:
            words = words[1].split(None, 1)
        name, _, form = words[0].partition("/")
        rest = (f"/{form} " if form else "") + (words[1] if len(words) > 1 else "")
        answer = self._answers.get(name)
        if answer is None:
            raise _refusal(line)
        answer(rest.strip())

    def words(self, line: str) -> Sequence[str]:
        """What may come next on `line`."""
        if line.startswith(("info ", "i ")):
            return ("registers",)
        if "$" in line:
            return ["$pc", *(f"${register.name}" for register in self.walk.registers())]
        return () if " " in line else ("info registers", "x", "print", "ctx")

    def here(self) -> None:
        """Say where it stands."""
        self.screen.text(self.walk.describe())
        first = True
        for number, finding in enumerate(self.walk.findings, 1):
            if finding.event != self.event:
                continue
            if first:
                self.screen.ansi(_drawn(finding, self.screen.columns))
            else:
                self.screen.text(f"also {finding.code} {finding.name}: findings {number}")
            first = False

    def findings(self, columns: int) -> list[Seen]:
        """All findings of the recording."""
        return [
            Seen(found.code, found.name, found.event, found.count, (), _drawn(found, columns))
            for found in self.walk.findings
        ]

    def close(self) -> None:
        """Close the file."""
        self.walk.close()

    # What it answers

    def _status(self, _words: str) -> None:
        walk, moment = self.walk, self.walk.moment()
        header = walk.header
        entries, exits, syscalls, swapgs = moment.counts
        self.screen.text(f"{walk.path}: {header.guest} by {header.source}, events {walk.first} to {walk.last}")
        if walk.flaw:
            self.screen.error(f"incomplete: {walk.flaw}; what follows is not known")
        self.screen.text(walk.describe())
        self.screen.text(
            f"  after {moment.seconds:.6f} s: {entries} entries ({syscalls} system calls), {exits} exits, "
            f"{swapgs} swapgs; {len(moment.findings)} of {len(walk.findings)} findings"
        )
        self._gs("")
        self.screen.text("  windows: not known, for a recording holds the code of its findings alone")

    def _findings(self, _words: str) -> None:
        for finding in self.walk.findings:
            self.screen.ansi(_drawn(finding, self.screen.columns))
        if not self.walk.findings:
            self.screen.note("no findings")

    def _gs(self, _words: str) -> None:
        for cpu, parity in self.walk.moment().parity.items():
            mark = "*" if cpu == int(self.walk.row["cpu"][0]) else " "
            self.screen.text(f"{mark} CPU {cpu}: GS {_PARITY.get(parity, 'user')}")

    def _areas(self, _words: str) -> None:
        areas = self.walk.areas()
        if not areas:
            raise NotCapable(
                "no save area is known at this event", "none was watched, or none yet", "record with a profile"
            )
        for area in areas:
            self.screen.text(f"save area {self.walk.named(area.start)}, {area.size} bytes")
            for slot in area.slots:
                value = "not stored yet" if slot.value is None else f"{slot.value:#018x}"
                by = f"  event {slot.event}, {self.walk.named(slot.pc)}" if slot.value is not None else ""
                self.screen.text(f"  +{slot.offset:<#6x} {slot.name:<9} {value}{by}")

    def _info(self, words: str) -> None:
        what, _, names = words.partition(" ")
        if not what or not "registers".startswith(what):
            raise _refusal(f"info {words}")
        registers = self.walk.registers()
        wanted = [_column(name, registers) for name in names.split()]
        self.screen.note(f"registers of {self.walk.whose()}")
        for register in registers:
            if not wanted or register.name in wanted:
                value = "" if register.value is None else f"{register.value:#x}"
                self.screen.text(f"{register.name:<15}{value:<19}{register.note}")

    def _print(self, words: str) -> None:
        form, _, rest = words.partition(" ") if words.startswith("/") else ("", "", words)
        value = examine.number(rest, self._register, self._symbol)
        self.screen.text(f"{value}" if "d" in form else f"{value:#x}")

    def _examine(self, words: str) -> None:
        bits = 32 if any(register.name == "eip" for register in self.walk.registers()) else 64
        lines = examine.examine(words, self.walk.memory, self._register, self._symbol, self.walk.named, bits)
        for line in lines:
            self.screen.gdb(line + "\n")

    def _register(self, name: str) -> int | None:
        if name == "pc":  # the instruction that is about to run; rip is the context's
            return int(self.walk.row["pc"][0])
        registers = self.walk.registers()
        try:
            wanted = _column(name, registers)
        except UsageError:
            return None
        return next((register.value for register in registers if register.name == wanted), None)

    def _symbol(self, name: str) -> int | None:
        return self.walk.address(name)


def _drawn(finding: Finding, columns: int) -> str:
    from gdbext.report.text import render_finding

    return rendered(render_finding(finding), min(columns, 200))


def _column(name: str, registers: Sequence[Register]) -> str:
    """The register's name as the event has it. Raises UsageError."""
    plain = _ALIASES.get(name.removeprefix("$"), name.removeprefix("$"))
    known = {register.name for register in registers}
    narrow = "e" + plain[1:]
    if plain in known:
        return plain
    if narrow in known and (narrow in GPR32 or narrow in ("eip", "eflags")):
        return narrow
    raise UsageError(f"no register {name} here")


def _refusal(line: str) -> CtxwatchError:
    """Why a recording cannot do it, and what to do instead."""
    name = " ".join(line.split()[:2]) if line.startswith(("ctx ", "info ", "i ")) else line.split()[0]
    if typed.moves(line):
        return NotCapable(
            f"{name}: a recording cannot run",
            "its guest ran before",
            "goto, next-finding, next-event and prev move in it",
        )
    if _STOPS.match(line):
        return NotCapable(f"{name}: a recording cannot stop anywhere", "its guest ran before", "goto EVENT moves in it")
    return NotCapable(
        f"{name}: not in a recording", "it holds events and what was captured with them", "help recordings tells more"
    )
