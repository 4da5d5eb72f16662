"""Save areas of real guests under watch: the code, the slot and the guilty instruction, or silence."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.guest

CTXWATCH = str(Path(sys.executable).with_name("ctxwatch"))


def run(tmp_path: Path, *words: str, via: str = "probe") -> tuple[int, list[dict[str, Any]]]:
    """Exit status and findings of ``ctxwatch run``."""
    out = tmp_path / "report.json"
    done = subprocess.run(
        [CTXWATCH, "run", *words, "--via", via, "--json", str(out)], capture_output=True, text=True, timeout=400
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(out.read_text())["findings"]


@pytest.mark.parametrize(
    ("words", "code", "slot", "writer"),
    [
        (["nrk-rflags"], "CW102", "slot 17", "syscall_entry"),
        (["nrk-rflags", "--profile", "nrk"], "CW102", "slot 17", "syscall_entry"),
        (["nrk-rflags", "--stripped"], "CW102", "slot 17", ""),
        (["stale-slot"], "CW404", "slot 6", "interrupt_entry"),
        (["stale-slot", "--profile", "generic"], "CW404", "slot 6", "interrupt_entry"),
        (["sel4-idle"], "CW402", "slot eip", "idle_loop"),
        (["sel4-idle"], "CW401", "slot eflags", "idle_loop"),
        (["sel4-idle-64"], "CW402", "slot rip", "idle_loop"),
        (["sel4-idle-64"], "CW401", "slot ss", "idle_loop"),
        (["sel4-idle", "--profile", "generic"], "CW401", None, "idle_loop"),
        (["stack-overflow-neighbour"], "CW401", None, "sum_below"),
        (["slot-clash"], "CW405", "slot 19", "interrupt_entry"),
        (["same-ring-frame"], "CW403", None, "copy_kernel_context"),
        (["frame-overwritten"], "CW302", "slot rsp", "stamp_stack"),
        (["selector-lost"], "CW103", "slot 2", "interrupt_entry"),
        (["wrong-thread"], "CW107", "slot gs:[0x18]", "syscall_entry"),
        (["xmm-clobbered-by-handler"], "CW105", None, "note_load"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_found_with_slot_and_writer(
    tmp_path: Path, words: list[str], code: str, slot: str | None, writer: str | None
) -> None:
    status, findings = run(tmp_path, *words)
    assert status == 1
    found = max((finding for finding in findings if finding["code"] == code), key=lambda f: f["writer"] is not None)
    if slot is not None:
        assert found["slot"] == slot
    if writer:
        assert found["writer"]["symbol"].split("+")[0].split(".")[0] == writer
    elif writer is not None:
        assert found["writer"] is not None


@pytest.mark.parametrize(
    ("words", "code", "slot", "writer"),
    [
        (["nrk-rflags", "--max-findings", "3"], "CW102", "slot 17", "syscall_entry"),
        (["stack-overflow-neighbour", "--max-findings", "1"], "CW401", "byte 696", "sum_below"),
        (["sel4-idle", "--max-findings", "2"], "CW402", "slot eip", "idle_loop"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_found_with_slot_and_writer_by_gdbstub(
    tmp_path: Path, words: list[str], code: str, slot: str, writer: str
) -> None:
    status, findings = run(tmp_path, *words, via="gdbstub")
    assert status == 1
    assert findings[0]["code"] == code
    assert (slot, writer) in {
        (finding["slot"], finding["writer"]["symbol"].split("+")[0])
        for finding in findings
        if finding["code"] == code and finding["writer"] is not None
    }


def test_the_lost_flags_end_in_who_wrote_the_slot_last(tmp_path: Path) -> None:
    _, findings = run(tmp_path, "nrk-rflags")
    cause = next(finding["cause"] for finding in findings if finding["code"] == "CW102" and finding["writer"])
    assert "Slot 17 was last written by the system call path" in cause
    assert re.search(r", (one interrupt|\d+ interrupts) ago; the interrupt path never stores it$", cause)
    assert "never stores RFLAGS" in cause


def test_a_frame_overwritten_once_names_who_did_it_where_all_stores_are_looked_at(tmp_path: Path) -> None:
    _, findings = run(tmp_path, "frame-overwritten", "--stores", "all", "--max-findings", "1")
    first = findings[0]
    assert (first["code"], first["slot"]) == ("CW302", "slot rsp")
    assert first["writer"]["symbol"].startswith("stamp_stack")
    assert first["writer"]["event"] < first["event"]
    assert first["writer"]["cpu"] == 0
    assert first["writer"]["thread"].startswith("cr3 0x")
    assert "not seen" not in first["cause"]


def test_a_shifted_area_is_shown_beside_the_area_unshifted(tmp_path: Path) -> None:
    _, findings = run(tmp_path, "sel4-idle")
    rows = {row["slot"]: row for row in next(f["area"] for f in findings if f["code"] == "CW402" and f["writer"])}
    assert rows["edi"]["value_of"] == "ebp"
    assert rows["cs"]["value_of"] == "eflags"
    assert rows["error"]["value_of"] == "eip"
    assert rows["eip"]["holds"] == "0x8"


@pytest.mark.parametrize(
    "words",
    [["clean-nrk"], ["clean-ia32"], ["clean-ia32", "--profile", "generic"], ["clean-nrk", "--profile", "nrk"]],
    ids="-".join,
)
def test_clean_guests_are_silent(tmp_path: Path, words: list[str]) -> None:
    status, findings = run(tmp_path, *words)
    assert [(finding["code"], finding["cause"]) for finding in findings] == []
    assert status == 0
