"""A recording that is walked, as a person asks it: what of a debugger's commands it can answer, line by line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gdbext.arch.addresses import rpl
from gdbext.arch.registers import GPR32
from gdbext.errors import NotCapable, UsageError
from gdbext.events.held import lacking
from gdbext.recording.walk import Register, Walk
from gdbext.report import examine
from gdbext.report.refusal import refusal, these
from gdbext.rules import gslog
from gdbext.rules.finding import Finding
from gdbext.rules.gslog import parity_name
from gdbext.rules.parity import UNKNOWN

_GS: Final = re.compile(r"(?:--cpu[ =](?P<cpu>\d+) *)?(?P<count>\d*)", re.ASCII)
_ALIASES: Final = {"sp": "rsp", "fp": "rbp", "eflags": "rflags"}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an answer. ``style``: text, note (dimmed), error, gdb (as GDB writes it) or picture (drawn, with
    colours as escape sequences; what came from the guest is escaped in it)."""

    text: str
    style: str = "text"


class Walked:
    """The recording that is open and where it is looked at.

    draw: shows a finding.  Raises RecordingError where `path` is no recording.
    """

    def __init__(
        self, path: Path, draw: Callable[[Finding], Sequence[Line]], progress: Callable[[int], None] | None = None
    ) -> None:
        self.walk = Walk(path, progress)
        self._draw = draw
        self._answers: dict[str, Callable[[str], Iterator[Line]]] = {
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

    def summary(self) -> list[str]:
        """What a status line says, part by part."""
        moment, walk = self.walk.moment(), self.walk
        parity = parity_name(moment.parity.get(moment.cpu, UNKNOWN))
        return [
            "recording" + (" (incomplete)" if walk.flaw else ""),
            f"event {moment.event} of {walk.last}",
            f"{len(moment.findings)} of {len(walk.findings)} findings",
            f"CPU {moment.cpu}",
            *([] if "cs" in lacking(walk.row) else [f"CPL {rpl(int(walk.row['cs'][0]))}"]),
            f"GS {parity}",
            walk.path.name,
        ]

    def answer(self, line: str) -> list[Line]:
        """Answer one command of GDB's or of ours. Raises CtxwatchError for what a recording cannot do."""
        words = line.split(None, 1)
        if words[0] == "ctx" and len(words) > 1:
            words = words[1].split(None, 1)
        name, _, form = words[0].partition("/")
        rest = (f"/{form} " if form else "") + (words[1] if len(words) > 1 else "")
        answer = self._answers.get(name)
        if answer is None:
            raise refusal(line)
        return list(answer(rest.strip()))

    def here(self) -> list[Line]:
        """Where it stands, and what was found there."""
        lines = [Line(self.walk.describe())]
        at = [number for number, found in enumerate(self.walk.findings, 1) if found.event == self.event]
        for number in at:
            finding = self.walk.findings[number - 1]
            if number == at[0]:
                lines += self._draw(finding)
            else:
                lines.append(Line(f"also {finding.code} {finding.name}: findings {number}"))
        return lines

    def close(self) -> None:
        """Close the file."""
        self.walk.close()

    # What it answers

    def _status(self, _words: str) -> Iterator[Line]:
        walk, moment = self.walk, self.walk.moment()
        header = walk.header
        entries, exits, syscalls, swapgs = moment.counts
        yield Line(f"{walk.path}: {header.guest} by {header.source}, events {walk.first} to {walk.last}")
        if walk.flaw:
            yield Line(f"incomplete: {walk.flaw}; what follows is not known", "error")
        yield Line(walk.describe())
        yield Line(
            f"  after {moment.seconds:.6f} s: {entries} entries ({syscalls} system calls), {exits} exits, "
            f"{swapgs} swapgs; {len(moment.findings)} of {len(walk.findings)} findings"
        )
        for cpu, parity in moment.parity.items():
            yield Line(f"{'*' if cpu == moment.cpu else ' '} CPU {cpu}: GS {parity_name(parity)}")
        yield Line("  windows: not known, for a recording holds the code of its findings alone")

    def _findings(self, _words: str) -> Iterator[Line]:
        for finding in self.walk.findings:
            yield from self._draw(finding)
        if not self.walk.findings:
            yield Line("no findings", "note")

    def _gs(self, words: str) -> Iterator[Line]:
        asked = _GS.fullmatch(words)
        if asked is None:
            raise UsageError(f"gs: {words} is not a number of transitions")
        walk, wanted = self.walk, None if asked["cpu"] is None else int(asked["cpu"])
        moment, log = walk.moment(), walk.gs()
        for cpu in these(list(moment.parity), wanted):
            yield Line(f"{'*' if cpu == moment.cpu else ' '} CPU {cpu}: GS {parity_name(moment.parity[cpu])}")
            state = log.state(cpu)
            for line in gslog.describe(state, walk.named) if state is not None else ():
                yield Line(f"    {line}")
        for one in log.transitions(int(asked["count"] or 0), wanted):
            yield Line(gslog.line(one, walk.named))

    def _areas(self, _words: str) -> Iterator[Line]:
        areas = self.walk.areas()
        if not areas:
            raise NotCapable(
                "no save area is known at this event", "none was watched, or none yet", "record with a profile"
            )
        for area in areas:
            yield Line(f"save area {self.walk.named(area.start)}, {area.size} bytes")
            for slot in area.slots:
                value = "not stored yet" if slot.value is None else f"{slot.value:#018x}"
                where = self.walk.symbol(slot.pc) or f"{slot.pc:#x}"
                by = f"  event {slot.event}, {where}" if slot.value is not None else ""
                yield Line(f"  +{slot.offset:<#6x} {slot.name:<9} {value}{by}")

    def _info(self, words: str) -> Iterator[Line]:
        what, _, names = words.partition(" ")
        if not what or not "registers".startswith(what):
            raise refusal(f"info {words}")
        registers = self.walk.registers()
        wanted = [_column(name, registers) for name in names.split()]
        yield Line(f"registers of {self.walk.whose()}", "note")
        for register in registers:
            if not wanted or register.name in wanted:
                value = "" if register.value is None else f"{register.value:#x}"
                yield Line(f"{register.name:<15}{value:<19}{register.note}".rstrip())

    def _print(self, words: str) -> Iterator[Line]:
        form, _, rest = words.partition(" ") if words.startswith("/") else ("", "", words)
        value = examine.number(rest, self._register, self.walk.address)
        yield Line(f"{value}" if "d" in form else f"{value:#x}")

    def _examine(self, words: str) -> Iterator[Line]:
        bits = 32 if any(register.name == "eip" for register in self.walk.registers()) else 64
        walk = self.walk
        for line in examine.examine(words, walk.memory, self._register, walk.address, walk.named, bits):
            yield Line(line, "gdb")

    def _register(self, name: str) -> int | None:
        if name == "pc":  # the instruction that is about to run; rip is the context's
            return int(self.walk.row["pc"][0])
        registers = self.walk.registers()
        try:
            wanted = _column(name, registers)
        except UsageError:
            return None
        return next((register.value for register in registers if register.name == wanted), None)


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
