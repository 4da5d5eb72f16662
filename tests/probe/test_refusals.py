"""``ctxwatch`` where the probe cannot be had or its ring not be used: one line, status 2, nothing left behind."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gdbext.sources.ring_file import RingFile

CTXWATCH = [sys.executable, "-c", "import sys; from gdbext.cli.main import main; sys.exit(main())"]
NO_PLUGINS = """#!/bin/sh
for word; do
    if [ "$word" = -plugin ]; then
        echo "qemu-system-x86_64: -plugin: invalid option" >&2
        exit 1
    fi
done
exec {qemu} "$@"
"""
"""A QEMU that was built with --disable-plugins."""


def ctxwatch(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CTXWATCH, *words],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, env=os.environ | environment,
        check=False,
    )  # fmt: skip


def own_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("ctxwatch: ")]


def refused(done: subprocess.CompletedProcess[str], said: str) -> None:
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == len(own_lines(done)) == 1, done.stderr
    assert said in done.stderr


@pytest.fixture
def without_plugins(tmp_path: Path) -> str:
    """A PATH on which QEMU knows no plugins."""
    qemu = shutil.which("qemu-system-x86_64")
    assert qemu is not None
    wrapper = tmp_path / "bin" / "qemu-system-x86_64"
    wrapper.parent.mkdir()
    wrapper.write_text(NO_PLUGINS.format(qemu=shlex.quote(qemu)))
    wrapper.chmod(0o755)
    return f"{wrapper.parent}:{os.environ['PATH']}"


def test_a_qemu_without_plugins(without_plugins: str) -> None:
    refused(ctxwatch("run", "clean-nrk", "--via", "probe", PATH=without_plugins), "loads no plugins: -plugin: invalid")


@pytest.mark.guest
def test_without_plugins_the_guest_is_watched_through_gdb(without_plugins: str) -> None:
    done = ctxwatch("run", "clean-nrk", "--until", "guest: start", PATH=without_plugins)
    assert done.returncode == 0, done.stderr
    reasons = [line for line in own_lines(done) if "loads no plugins" in line]
    assert len(reasons) == 1, done.stderr
    assert "watching through GDB's breakpoints" in reasons[0]


@pytest.mark.guest
@pytest.mark.parametrize(
    ("size", "said"),
    [("1m", "no room for the ring"), ("10m", "the probe cannot start: no room for the ring")],
    ids=["before-qemu-starts", "for-the-second-vcpu"],
)
def test_a_full_dev_shm(tmp_path: Path, size: str, said: str) -> None:
    """The temporary directory, which would do, too, is on it."""
    kept = tmp_path / "kept"

    def with_small_shm(then: str) -> list[str]:
        mount = f"mount -t tmpfs -o size={size} ctxwatch /dev/shm"
        return ["unshare", "--map-root-user", "--mount", "sh", "-c", f"{mount} && {then}"]

    if shutil.which("unshare") is None or subprocess.run(with_small_shm("true"), capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here (needs user namespaces)")
    run = shlex.join([*CTXWATCH, "run", "clean-smp", "--via", "probe"])
    then = f"TMPDIR=/dev/shm {run}; status=$?; ls -A /dev/shm > {shlex.quote(str(kept))}; exit $status"
    done = subprocess.run(with_small_shm(then), capture_output=True, text=True, timeout=120, check=False)
    refused(done, said)
    assert kept.read_text() == ""


def test_a_ring_of_another_version(tmp_path: Path) -> None:
    ring = RingFile.create(tmp_path / "ring")
    ring.header["version"] = 77
    refused(ctxwatch("replay", str(ring.path)), "it is version 77.")
    ring.close()
