"""Profiles with mistakes beside a live guest: one line each, and watching goes on without what they concern."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gdbext.qemu import guests

pytestmark = pytest.mark.guest

CTXWATCH = str(Path(sys.executable).with_name("ctxwatch"))
HEAD = 'name = "mine"\ntitle = "with a mistake"\n'
NRK = HEAD + 'extends = "nrk"\n'


def run(tmp_path: Path, profile: str) -> tuple[int, list[dict[str, Any]], list[str]]:
    """Status, findings, and what was said, of the guest that never stores RFLAGS."""
    mine, report = tmp_path / "mine.toml", tmp_path / "report.json"
    mine.write_text(profile)
    words = ["nrk-rflags", "--profile", str(mine), "--via", "probe", "--max-findings", "2", "--json", str(report)]
    done = subprocess.run([CTXWATCH, "run", *words], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    text = report.read_text() if report.exists() else ""
    return done.returncode, json.loads(text)["findings"] if text else [], done.stderr.splitlines()


@pytest.mark.parametrize(
    ("profile", "line", "says"),
    [
        (NRK + "[policy]\nuser_iople = true\n", 5, "user_iople"),
        (HEAD + '[area]\nsize = 64\ncurrent = "[gs:8]"\n[area.slots]\nrip = 0\nrsp = 4\n', 3, "rip and rsp overlap"),
    ],
    ids=["unknown key", "overlapping slots"],
)
def test_a_mistake_in_the_file_is_told_before_anything_runs(tmp_path: Path, profile: str, line: int, says: str) -> None:
    status, _, said = run(tmp_path, profile)
    assert status == 2
    (told,) = said
    assert f"mine.toml:{line}:" in told
    assert says in told


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('kind = "fixed"\naddresses = ["[0xffffc00000000000]"]', "0xffffc00000000000"),
        ('kind = "fixed"\naddresses = ["0xffffc00000000000"]', "area at 0xffffc00000000000 is not watched"),
        ('kind = "fixed"\naddresses = ["nosuch"]', "nosuch"),
        ('kind = "list"\nhead = "[gs:0]"\nnext = 8\nlimit = 1', "list is longer than its limit of 1"),
        ('kind = "list"\nhead = "0xffffc00000000000"\nnext = 0', "0xffffc00000000000"),
    ],
    ids=["unmapped expression", "outside memory", "no symbol", "long list", "unmapped list"],
)
def test_what_the_guest_shows_costs_that_area_alone(tmp_path: Path, table: str, says: str) -> None:
    status, found, said = run(tmp_path, f"{NRK}[areas]\n{table}\n")
    assert status == 1
    told = [line for line in said if "profile mine" in line]
    assert any(says in line for line in told), said
    assert len(told) <= 2, said
    flags = next(finding for finding in found if finding["code"] == "CW102")
    assert flags["slot"] == "slot 17"


def test_the_running_context_s_area_cannot_be_found(tmp_path: Path) -> None:
    text = NRK + '[area]\nsize = 704\nsimd = 192\ncurrent = "[0xffffc00000000000]"\n[area.slots]\nrip = 128\n'
    status, found, said = run(tmp_path, text)
    assert status == 1
    (told,) = [line for line in said if "profile mine" in line]
    assert "[area] current = '[0xffffc00000000000]'" in told
    assert "correct the expression" in told
    assert found[0]["code"] == "CW102"


def test_a_list_that_loops_in_the_guest_costs_what_lies_behind(tmp_path: Path) -> None:
    """Its areas are walked once each; the loop is told with its place, and how far the walk came."""
    bug = guests.find("nrk-rflags")
    guest = replace(bug, name="area-list", defines=(*bug.defines, "AREA_LIST"))
    kernel = guests.build(guest)
    mine, report = tmp_path / "mine.toml", tmp_path / "report.json"
    mine.write_text(f'{NRK}[areas]\nkind = "list"\nhead = "[area_list]"\nnext = 176\n')
    words = ["--profile", str(mine), "--kernel", str(kernel), "--max-findings", "2", "--until", guest.until]
    line = [CTXWATCH, "run", *words, "--json", str(report), "--", *guest.command(kernel)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    assert done.returncode == 1, done.stderr
    (told,) = [text for text in done.stderr.splitlines() if "profile mine" in text]
    assert re.search(r"profile mine: \[areas\] list loops back to 0x[0-9a-f]{16} after \d+ areas: .*next", told), told
    flags = next(f for f in json.loads(report.read_text())["findings"] if f["code"] == "CW102")
    assert flags["slot"] == "slot 17"
