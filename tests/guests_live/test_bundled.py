"""Every bundled guest, watched: the bugs are named, by both sources and without symbols; the clean ones stay silent."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gdbext.qemu import guests
from gdbext.qemu.guests import Guest
from tests.guests_live.pages import REFRESH, stale
from tests.guests_live.watching import Watched, watch

pytestmark = pytest.mark.guest

OURS = [guest for guest in map(guests.find, guests.names()) if guest.linux is None]
BUGGY = [guest for guest in OURS if guest.codes]
CLEAN = [guest for guest in OURS if not guest.codes]

PROBE_ONLY = {
    "CW105": "GDB's breakpoints capture no SIMD state",
    "CW401 of sel4": "the CPU pushes its frames into the areas, and QEMU ends where that hits a watchpoint",
}
"""Codes (of a style of guests) that the gdbstub source cannot lead to, with the reason."""

OFTEN = ("nrk-rflags", "gpr-swapped", "callee-lost", "swapgs-missing", "sel4-idle", "triple-fault")
"""Bugs looked for in every way each time; the others only through the probe, unless slow tests are asked for."""

ENOUGH = 2000
"""Interrupts that a clean guest must be checked for."""


def name(guest: Guest) -> str:
    return guest.name


def _pace(guest: Guest) -> list[pytest.MarkDecorator]:
    return [] if guest.name in OFTEN else [pytest.mark.slow]


def expect_bug(guest: Guest, run: Watched, codes: Sequence[str]) -> None:
    """The first of `codes` is the first finding, the others follow."""
    assert run.status == 1, run.evidence
    assert run.codes[0] == codes[0], run.evidence
    assert set(codes) <= set(run.codes), run.evidence
    first = run.document["findings"][0]
    if guest.field:
        assert guest.field in first["field"].split(","), run.evidence
    assert first["severity"] == "error", run.evidence
    assert first["cause"], run.evidence
    assert first["look_at"], run.evidence


def expect_writer(guest: Guest, run: Watched) -> None:
    """Wherever an expected finding has a slot and its last writer, they are those of the guest's file."""
    named = [f for f in run.document["findings"] if f["code"] in guest.codes and f["slot"] and f["writer"]]
    functions = {f["writer"]["symbol"].partition("+")[0].partition(".")[0] for f in named}
    assert functions <= set((guest.writer or guest.guilty).split()), run.evidence
    assert not guest.slot or guest.slot in {f["slot"] for f in named}, run.evidence


def expect_silence(run: Watched) -> None:
    assert run.status == 0, run.evidence
    assert run.document["findings"] == [], run.evidence
    assert run.document["events"]["lost"] == 0, run.evidence
    assert "CORRUPT" not in run.said, run.evidence


@pytest.mark.parametrize("guest", BUGGY, ids=name)
def test_bug_by_probe(guest: Guest) -> None:
    run = watch(guest.name, "--via", "probe")
    expect_bug(guest, run, guest.codes)
    expect_writer(guest, run)
    assert run.document["events"]["lost"] == 0, run.evidence
    assert run.document["source"] == "probe"
    assert stale(guest, run.said) == [], f"docs/codes are stale: {REFRESH}=1 renews them\n{run.evidence}"


@pytest.mark.parametrize("guest", [pytest.param(g, marks=_pace(g)) for g in BUGGY], ids=name)
def test_bug_by_probe_without_symbols(guest: Guest) -> None:
    run = watch(guest.name, "--via", "probe", "--stripped", "--max-findings", str(4 + len(guest.codes)))
    expect_bug(guest, run, guest.codes)
    assert all(finding["interrupted"]["symbol"] is None for finding in run.document["findings"]), run.evidence


@pytest.mark.parametrize("guest", [pytest.param(g, marks=_pace(g)) for g in BUGGY], ids=name)
def test_bug_by_gdbstub(guest: Guest) -> None:
    codes = [code for code in guest.codes if not {code, f"{code} of {guest.style}"} & PROBE_ONLY.keys()]
    if not codes:
        pytest.skip(PROBE_ONLY[guest.codes[0]])
    run = watch(guest.name, "--via", "gdbstub", "--max-findings", str(1 + len(guest.codes)))
    expect_bug(guest, run, codes)
    assert run.document["source"] == "gdbstub"


@pytest.mark.parametrize("guest", CLEAN, ids=name)
def test_clean_by_probe(guest: Guest) -> None:
    run = watch(guest.name, "--via", "probe")
    expect_silence(run)
    assert run.document["events"]["identical"] >= ENOUGH, run.evidence


@pytest.mark.slow
@pytest.mark.parametrize("guest", CLEAN, ids=name)
def test_clean_by_gdbstub(guest: Guest) -> None:
    run = watch(guest.name, "--via", "gdbstub", seconds=600)
    expect_silence(run)
    assert run.document["events"]["entries"] >= ENOUGH, run.evidence


@pytest.mark.parametrize("via", ["probe", pytest.param("gdbstub", marks=pytest.mark.slow)])
def test_a_guest_that_hangs_is_told_by_either_source(via: str) -> None:
    run = watch("nmi-nested", "--via", via, "--rules", "CW701")  # of which it has nothing
    assert run.status == 3, run.evidence
    assert run.document["findings"] == [], run.evidence
    assert "the guest hangs" in run.said, run.evidence


def test_the_named_symbols_are_the_kernels() -> None:
    """With symbols, the finding names where the context was interrupted and which instruction gave it back wrong."""
    run = watch("nrk-rflags", "--max-findings", "1")
    finding = run.document["findings"][0]
    assert finding["interrupted"]["symbol"], run.evidence
    assert finding["slot"], run.evidence
    assert int(finding["expected"], 16) != int(finding["actual"], 16), run.evidence
