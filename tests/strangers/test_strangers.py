"""Kernels in other manners than the bundled ones, stripped, without a profile: silent when whole, named when broken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.strangers import building
from tests.strangers.building import Stranger

pytestmark = [pytest.mark.guest, pytest.mark.slow]

ENOUGH = 10_000
"""Contexts that a whole kernel must have had compared."""
STRANGERS = [building.find(name) for name in building.names()]
BROKEN = [
    pytest.param(
        one,
        name,
        id=f"{one.name}-{name.lower()}",
        marks=[pytest.mark.xfail(reason=bug.open, strict=False)] if bug.open else [],
    )
    for one in STRANGERS
    for name, bug in one.bugs.items()
]


def watch(stranger: Stranger, out: Path, bug: str | None, *options: str) -> tuple[int, dict[str, Any], str]:
    """Run ctxwatch on the stranger as its user would: exit status, report, and what is shown if a test fails."""
    if stranger.missing:
        pytest.skip(f"{stranger.missing} is not installed")
    kernel = building.build(stranger, out, bug)
    report = out / "report.json"
    run = [sys.executable, "-c", "import sys; from gdbext.cli.main import main; sys.exit(main())", "run"]
    run += ["--until", stranger.over, "--json", str(report), *options]
    run += ["--", *building.command(stranger, kernel)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=200)
    evidence = f"{' '.join(run[3:])}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr, evidence
    text = report.read_text() if report.exists() else ""
    assert text, evidence
    return done.returncode, json.loads(text), evidence


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda one: one.name)
def test_the_whole_kernel_is_silent(stranger: Stranger, tmp_path: Path) -> None:
    status, report, evidence = watch(stranger, tmp_path, None, "--timeout", "90")
    assert report["findings"] == [], evidence
    assert status == 0, evidence
    assert report["events"]["lost"] == 0, evidence
    assert report["events"]["identical"] >= ENOUGH, evidence
    assert "CORRUPT" not in evidence


@pytest.mark.parametrize(("stranger", "bug"), BROKEN)
def test_the_first_finding_names_the_bug(stranger: Stranger, bug: str, tmp_path: Path) -> None:
    expected = stranger.bugs[bug]
    options = ["--timeout", "30", "--max-findings", "1", *expected.options]
    status, report, evidence = watch(stranger, tmp_path, bug, *options)
    assert status == 1, evidence
    assert report["events"]["lost"] == 0, evidence
    first = report["findings"][0]
    assert first["code"] in expected.codes, evidence
    assert not expected.field or expected.field in first["field"].split(","), evidence
    assert first["cause"], evidence
    assert expected.look in first["look_at"], evidence
