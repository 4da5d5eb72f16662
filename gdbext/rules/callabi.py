"""System calls that keep to an ABI of their kernel's own: what else would be an error is a warning.

A path that restores nothing of what a function may change was meant to be called as one; a call that comes back with
registers changed which its paths store and load as they should returns something in them: kernels that exchange
messages do.
"""

from __future__ import annotations

from typing import Final

from gdbext.arch.registers import CALLEE_SAVED_32, CALLEE_SAVED_64, CALLER_SAVED_32, CALLER_SAVED_64, GPR64
from gdbext.events.row import Batch, Kind
from gdbext.ledger.compare import gprs
from gdbext.rules.codes import ERROR, WARNING
from gdbext.rules.convention import Convention
from gdbext.rules.finding import Finding
from gdbext.rules.history import History
from gdbext.rules.pathfacts import PathFacts
from gdbext.rules.stale import same_again

_IF_ABI: Final = "; if this is the ABI, name the registers in a profile (syscall_returns)"


class CallAbi:
    """Weighs the findings of one engine."""

    def __init__(self, paths: PathFacts, history: History, convention: Convention) -> None:
        self._paths = paths
        self._history = history
        self._convention = convention
        self._as_functions: dict[tuple[int, int], Finding] = {}
        """The first findings, by handler and exit, about system calls that keep registers as a function does."""
        self._results: dict[tuple[int, int], frozenset[str]] = {}
        """Registers, by handler and RAX, in which system calls seem to return results."""
        self._alone: dict[tuple[int, int], list[Finding]] = {}
        """Findings about system calls that changed one register, likewise, as long as they are errors."""

    def weigh(self, finding: Finding) -> None:
        """Make it a warning, and say why, if it may be the ABI; those before it that it excuses, too."""
        if self._is_as_functions(finding):
            finding.severity = WARNING
            finding.cause += ". This path restores nothing of what a function may change: its callers may expect that"
            finding.look_at += _IF_ABI
        elif self._may_be_results(finding):
            _warn_of_results(finding)
            for seen in self._alone.pop(_call_of(finding), []):
                if {d.field for d in seen.differences} <= self._results.get(_call_of(finding), frozenset()):
                    _warn_of_results(seen)

    def covers(self, finding: Finding) -> bool:
        """True if a warning says of the finding's path that it keeps registers as a function does."""
        return (finding.handler, finding.pc) in self._as_functions

    def told_before(self, finding: Finding) -> Finding | None:
        """The finding that says of this path already what `finding` does, with other registers; None if none does."""
        if finding.code != "CW106" or finding.severity == ERROR:
            return None
        first = self._as_functions.setdefault((finding.handler, finding.pc), finding)
        return first if first is not finding else None

    def _is_as_functions(self, finding: Finding) -> bool:
        """True if a system call lost what a function may change alone (any register, where calls keep none), on a path
        that restores nothing of that."""
        entry, row = finding.entry_row, finding.row
        if finding.code != "CW106" or entry is None or row is None:
            return False
        wide = row["mode"][0] == 64
        saved, scratch = (CALLEE_SAVED_64, CALLER_SAVED_64) if wide else (CALLEE_SAVED_32, CALLER_SAVED_32)
        lost, changed = {d.field for d in finding.differences}, {*scratch}
        if not lost <= changed and self._convention.keeps_none(row):
            changed |= {*saved}
        kept = changed - {"rcx", "r11"} if wide else changed
        return lost <= changed and self._paths.restores_any(entry, row, kept) is False

    def _may_be_results(self, finding: Finding) -> bool:
        """True if a system call came back with several general registers changed that its paths keep, or what one such
        call returned in some of them: kernels that exchange messages return them there. RDX alone is a long result."""
        entry, row = finding.entry_row, finding.row
        if finding.code != "CW106" or entry is None or row is None or finding.match != "exact":
            return False
        lost = {d.field for d in finding.differences}
        if not lost <= set(GPR64) - {"rsp"} or not self._paths.keeps(entry, row, lost):
            return False
        if self._is_anothers(entry, row):
            return False
        number = _call_of(finding)
        results = self._results.get(number, frozenset())
        if len(lost) > 1 and same_again(row, int(entry["seq"][0]), self._history) is None:
            results = self._results[number] = results | lost
        if lost <= results or lost == {"rdx"}:
            return True
        self._alone.setdefault(number, []).append(finding)
        return False

    def _is_anothers(self, entry: Batch, row: Batch) -> bool:
        """True if the exit `row` from the call `entry` has the registers of one made on another stack, but for what a
        function may change: it is that one that returns, on the wrong stack."""
        past = self._history.before(int(row["seq"][0]))
        past = past[(past["kind"] == Kind.ENTRY) & (past["rip"] == entry["rip"]) & (past["rsp"] != entry["rsp"])]
        changed = gprs(past) != gprs(row)
        changed[:, [GPR64.index(name) for name in ("rax", "rcx", "rdx", "r11", "rsp")]] = False
        return bool((~changed.any(axis=1)).any())


def _call_of(finding: Finding) -> tuple[int, int]:
    """Handler and RAX of the system call that `finding` is about."""
    return finding.handler, int(finding.entry_row["rax"][0]) if finding.entry_row is not None else 0


def _warn_of_results(finding: Finding) -> None:
    finding.severity = WARNING
    finding.cause += (
        ". The entry path stores and the exit path loads it rightly, so that the call itself put another value there: "
        "a result, or what overwrote it"
    )
    finding.look_at += _IF_ABI
