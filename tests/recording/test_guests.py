"""Every bundled guest: what its recording's replay finds is what the live run found, also through Parquet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gdbext.cli.main import main
from gdbext.qemu import guests
from tests.guests_live.watching import EVIDENCE, watch

pytestmark = [pytest.mark.guest, pytest.mark.slow]

LINUX_SECONDS = "25"
"""A cut of a Linux boot is enough: it has tens of thousands of events."""


def replayed(path: Path, directory: Path) -> dict[str, Any]:
    out = directory / "replayed.json"
    main(["replay", str(path), "--json", str(out)])
    document: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return document


def without_times(document: dict[str, Any]) -> str:
    """The document as text, but for the time the run took."""
    return json.dumps(document | {"seconds": None}, indent=1)


@pytest.mark.parametrize("name", guests.names())
def test_the_replay_finds_what_the_live_run_found(name: str, tmp_path: Path) -> None:
    linux = guests.find(name).linux is not None
    words = [name, "--via", "probe", "--record", str(tmp_path / "r"), *(["--timeout", LINUX_SECONDS] if linux else [])]
    run = watch(*words)
    if linux and run.status == 2:
        pytest.skip(f"its kernel cannot be had here: {run.said.splitlines()[-1]}")
    assert run.document["events"]["entries"] > 0, run.evidence
    live = without_times(run.document)
    assert main(["export", str(tmp_path / "r"), "--format", "parquet"]) == 0
    for path in (tmp_path / "r", tmp_path / "r.parquet"):
        again = without_times(replayed(path, tmp_path))
        if again != live:
            EVIDENCE.mkdir(exist_ok=True)
            shutil.copy(tmp_path / "r", EVIDENCE / f"replay-{name}.arrow")
        assert again == live, f"the recording is kept in {EVIDENCE}\n{run.evidence}"
