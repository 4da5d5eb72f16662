"""A disk that is full while a guest is recorded: one line says it, the guest goes on, what is there is readable."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recording.sessions import replayed

SIZE = 300
"""Kilobytes of the disk: some tenths of a second of recording."""


def mount_command(disk: Path, then: str) -> list[str]:
    """Run `then` with a small disk at `disk`, in a mount namespace of its own."""
    mount = f"mount -t tmpfs -o size={SIZE}k ctxwatch {shlex.quote(str(disk))}"
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", f"{mount} && {then}"]


@pytest.mark.guest
def test_a_full_disk_while_a_guest_is_recorded(tmp_path: Path) -> None:
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    if shutil.which("unshare") is None or subprocess.run(mount_command(disk, "true"), capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here (needs user namespaces)")
    ctxwatch = [sys.executable, "-c", "import sys; from gdbext.cli.main import main; sys.exit(main())"]
    run = [*ctxwatch, "run", "clean-nrk", "--via", "probe", "--json", str(tmp_path / "out.json")]
    words = shlex.join([*run, "--record", str(disk / "r")])
    then = f"{words}; status=$?; cp {shlex.quote(str(disk))}/r* {shlex.quote(str(kept))}; exit $status"
    done = subprocess.run(
        mount_command(disk, f"mkdir {shlex.quote(str(kept))}; {then}"), capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "recording stopped" in line]
    assert len(said) == 1, done.stderr
    assert "No space left on device" in said[0]
    assert "guest: done" in done.stdout
    assert [path.name for path in kept.iterdir()] == ["r.incomplete"]
    _, flaw, events = replayed(kept / "r.incomplete")
    assert flaw is not None
    whole = json.loads((tmp_path / "out.json").read_text())["events"]
    assert events > 0
    assert whole["lost"] == 0
