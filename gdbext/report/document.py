"""The result of one watched run, and its JSON form (schema ``ctxwatch.report/1``)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from gdbext.errors import GuestFailed
from gdbext.rules.codes import ERROR
from gdbext.rules.engine import Counts
from gdbext.rules.finding import Finding

SCHEMA: Final = "ctxwatch.report/1"


@dataclass(frozen=True, slots=True)
class QemuFacts:
    """The emulator: version, accelerator (tcg, kvm), plugin API generation where the probe is used."""

    version: str
    accel: str
    plugin_api: int | None = None


@dataclass(slots=True)
class RunReport:
    """Everything that is reported of a run.

    ``seconds``: wall time the guest was watched; ``lost``: events; ``incomplete``: why this is not the whole run (a
    recording that is damaged or was not finished), None if it is.
    """

    guest: str
    source: str
    qemu: QemuFacts | None = None
    counts: Counts = field(default_factory=Counts)
    lost: int = 0
    seconds: float = 0.0
    findings: Sequence[Finding] = ()
    incomplete: str | None = None

    @property
    def has_errors(self) -> bool:
        """Whether any finding is of severity error: exit status 1."""
        return any(finding.severity == ERROR for finding in self.findings)

    @property
    def nothing_found(self) -> tuple[str, bool]:
        """What to say where there is no finding, and whether that is all there is to say: all was seen and checked."""
        if self.incomplete is not None:
            return "nothing found in the part that could be read", False
        if not (self.counts.entries or self.counts.exits):
            return "nothing found: no interrupt, exception or system call was seen", False
        if self.lost:
            return f"nothing found, but {self.lost:,} event{'s were' if self.lost > 1 else ' was'} lost", False
        return "nothing found", True

    def document(self) -> dict[str, Any]:
        """The JSON document; addresses and register values are hex strings. ``incomplete`` is there if it is."""
        return {
            "schema": SCHEMA,
            "guest": self.guest,
            "source": self.source,
            "qemu": asdict(self.qemu) if self.qemu is not None else None,
            "events": asdict(self.counts) | {"lost": self.lost},
            "seconds": round(self.seconds, 3),
            "findings": [finding_document(finding) for finding in self.findings],
        } | ({"incomplete": self.incomplete} if self.incomplete is not None else {})

    def json(self) -> str:
        """The document as text."""
        return json.dumps(self.document(), indent=2)


def not_all_seen(lost: int) -> GuestFailed | None:
    """Why a run in which no error was found is no clean one: so many events were lost. None where none was."""
    if not lost:
        return None
    what = f"{lost:,} event{'s were' if lost > 1 else ' was'} lost"
    return GuestFailed(what, "what was interrupted or resumed there was not checked")


def finding_document(finding: Finding) -> dict[str, Any]:
    """One finding as a JSON object. Several differing fields are joined by commas, their values in the same order;
    ``expected`` is null where nothing tells what the field should be."""
    place, writer = finding.interrupted, finding.writer
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity,
        "count": finding.count,
        "event": finding.event,
        "cpu": finding.cpu,
        "vector": finding.vector,
        "interrupted": {"rip": hex(place.rip), "symbol": place.symbol, "cpl": place.cpl},
        "field": finding.field,
        "expected": _joined([difference.expected for difference in finding.differences]),
        "actual": _joined([difference.actual for difference in finding.differences]),
        "match": finding.match,
        "thread": finding.thread,
        "slot": finding.slot,
        "writer": None if writer is None else asdict(writer) | {"rip": hex(writer.rip)},
        "cause": finding.cause,
        "look_at": finding.look_at,
    } | _area(finding)


def _area(finding: Finding) -> dict[str, Any]:
    """The save area as it is beside the area un-shifted, where a finding has one (CW402)."""
    if not finding.table:
        return {}
    rows = [
        {"slot": name, "holds": _hex(holds), "unshifted": _hex(should), "value_of": whose}
        for name, holds, should, whose in finding.table
    ]
    return {"area": rows}


def _hex(value: int | None) -> str | None:
    return None if value is None else hex(value)


def _joined(values: Sequence[int | None]) -> str | None:
    """The values in hexadecimal, an empty place for one that is not known; None where none is."""
    if all(value is None for value in values):
        return None
    return ",".join(_hex(value) or "" for value in values)
