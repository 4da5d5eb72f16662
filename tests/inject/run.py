"""One injection: a healthy guest, one fault, and what the rules say at its first effect."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any, Final

from gdbext.errors import CtxwatchError
from gdbext.qemu.guests import Guest
from gdbext.qemu.machine import ARCHITECTURES
from gdbext.rules.finding import Finding
from tests.inject.faults import Fault
from tests.inject.live import Live, with_workload
from tests.inject.patch import NotHere, TooLate
from tests.inject.scene import Expect, Injection, Scene
from tests.inject.stub import StubError

FOUND, OTHER, MISSED, NO_EFFECT, NOT_HERE, UNHEALTHY = (
    "found", "found otherwise", "missed", "no effect", "not applicable", "not healthy",
)  # fmt: skip
BOOT: Final = 60.0
"""Seconds a guest gets to come to its workloads."""
ATTEMPTS: Final = 3
"""Boots, where the work was done before the guest was held, what was waited for did not come in time, or what was
changed was overwritten before anybody used it."""
HEALTHY: Final = 600
"""Entries that the guest makes under its workload before it is held."""
AFTER: Final = 60.0
"""Seconds it runs with the fault, at most: its work takes :data:`WORK`, more on a busy host."""
WORK: Final = 15
"""Seconds of uptime for which a guest is given work."""


@dataclass(slots=True)
class Result:
    """What came of one injection. ``later``: events between the injection and the first finding; ``healthy``: events
    before it; ``found_out``: what the guest showed of itself, where nothing was known of it; ``again``:
    it came to nothing by chance, as far as can be told."""

    guest: str
    fault: str
    verdict: str
    says: str = ""
    injection: Injection | None = None
    finding: Finding | None = None
    beside: list[str] = field(default_factory=list)
    healthy: int = 0
    later: int = 0
    seconds: float = 0.0
    found_out: list[str] = field(default_factory=list)
    again: bool = False

    def document(self) -> dict[str, Any]:
        """As JSON."""
        done: dict[str, Any] = {"guest": self.guest, "fault": self.fault, "verdict": self.verdict, "says": self.says}
        if self.injection is not None:
            change = self.injection.change
            done["changed"] = {
                "address": f"{change.address:#x}", "symbol": change.symbol,
                "before": list(change.before), "after": list(change.after),
            }  # fmt: skip
            done["expected"] = str(self.injection.expect)
        if self.finding is not None:
            done["found"] = {"code": self.finding.code, "field": self.finding.field, "cause": self.finding.cause}
        return done | {
            "beside": self.beside, "events_before": self.healthy, "events_until_found": self.later,
            "seconds": round(self.seconds, 1), "found_out": self.found_out,
        }  # fmt: skip


def fits(expect: Expect, finding: Finding) -> bool:
    """Whether `finding` says what must be said."""
    named = {difference.field for difference in finding.differences}
    return finding.code in expect.codes and expect.fields <= named and not (expect.alone and named - expect.fields)


def bits_of(guest: Guest) -> int:
    """How wide the kernel of `guest` is."""
    return ARCHITECTURES[guest.arch]


def inject(guest: Guest, fault: Fault, blind: bool = False) -> Result:
    """Boot `guest`, let it be healthy for a while, strike, and see; `blind`: without names and profile."""
    began = time.monotonic()
    for _ in range(ATTEMPTS):
        result = _attempt(guest, fault, blind)
        if not result.again:
            break
    result.seconds = time.monotonic() - began
    return result


def _attempt(guest: Guest, fault: Fault, blind: bool) -> Result:
    result = Result(guest.name, fault.name, NOT_HERE)
    if bits_of(guest) not in fault.bits:
        result.says = f"not a fault of {bits_of(guest)}-bit kernels"
        return result
    try:
        with Live(with_workload(guest, fault.workload, WORK), fault.simd, fault.nmi, blind) as live:
            _strike(live, fault, result)
            result.found_out = live.found_out if blind else []
    except (CtxwatchError, StubError, OSError) as error:
        result.verdict, result.says = UNHEALTHY, str(error)
    return result


def _strike(live: Live, fault: Fault, result: Result) -> None:
    if not live.watch(lambda: live.started, BOOT):
        result.verdict, result.says = UNHEALTHY, live.ended or "it did not start in time"
        return
    enough = live.engine.counts.entries + HEALTHY
    live.watch(lambda: live.engine.counts.entries >= enough, BOOT)
    live.hold()
    if live.errors or live.complaints or live.ended:
        result.verdict = UNHEALTHY
        said = [*(f"{f.code} {f.cause}" for f in live.errors), *live.complaints]
        result.says = "; ".join(said) or live.ended
        result.again = not said and _finished(live)
        return
    result.healthy = live.engine.counts.entries + live.engine.counts.exits
    scene = Scene(live)
    try:
        result.injection = fault.apply(scene)
    except NotHere as reason:
        result.says, result.again = str(reason), isinstance(reason, TooLate)
        return
    live.catch_up()
    struck = scene.struck or live.last_seq
    live.go()
    live.watch(lambda: bool(live.errors) or _finished(live) or live.silent, AFTER)
    if not live.ended:
        with contextlib.suppress(CtxwatchError, StubError):  # it may be past stopping: what was found stands
            live.hold()
    _conclude(live, result, struck)


def _finished(live: Live) -> bool:
    return any("guest: done" in line for line in live.lines)


def _conclude(live: Live, result: Result, struck: int) -> None:
    assert result.injection is not None
    if not live.errors:
        wrong = live.complaints or ([live.ended] if live.ended and not _finished(live) else [])
        result.verdict = MISSED if wrong or not _finished(live) else NO_EFFECT
        result.again = result.verdict == NO_EFFECT and bool(result.injection.expect.codes)
        result.says = "; ".join(wrong[:3]) or ("the guest's self-checks pass" if _finished(live) else "it hangs")
        return
    first = [finding for finding in live.errors if finding.event == live.errors[0].event]
    fitting = [finding for finding in first if fits(result.injection.expect, finding)]
    result.finding = (fitting or first)[0]
    result.verdict = FOUND if fitting else OTHER
    result.beside = [f"{f.code} {f.field or ''}".strip() for f in first if f is not result.finding]
    result.later = result.finding.event - struck
    result.says = "; ".join(live.complaints[:2])
