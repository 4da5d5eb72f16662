"""The Linux guests by themselves, unwatched: they boot, and the workloads' checks of themselves pass."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from gdbext.errors import EnvironmentUnusable
from gdbext.qemu import guests, linux, making

WORKLOADS = "default,forks,signals,restart,tracing,bases,extable,traps,simd,futex,segments,rseq,probes,hotplug,spin"
IA32 = ",".join(f"{name}32" for name in WORKLOADS.split(",")[1:])

LINUX = [name for name in guests.names() if guests.find(name).linux]


def boot(name: str, workload: str, *extra: str) -> str:
    """Boot a Linux guest to its end and return what it printed."""
    guest = dataclasses.replace(guests.find(name), workload=workload)
    try:
        kernel = guests.build(guest)
    except EnvironmentUnusable as error:
        pytest.skip(str(error))
    command = [*guest.command(kernel), "-serial", "stdio", "-monitor", "none", "-no-reboot", *extra]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=280, check=True)
    return done.stdout.decode("utf-8", "replace")


@pytest.mark.guest
@pytest.mark.slow
@pytest.mark.parametrize("name", LINUX)
def test_every_workload_passes(name: str) -> None:
    workload = WORKLOADS if guests.find(name).arch == "i386" else f"{WORKLOADS},{IA32}"
    said = boot(name, workload)
    results = re.findall(r"^workload (\S+) (.*?)\r?$", said, re.MULTILINE)
    assert [f"{name} {result}" for name, result in results if result != "ok"] == []
    assert len(results) == len(workload.split(",")) + 1, said  # `default` tells of two
    assert "guest: done" in said
    assert "LOC:" in said or "timer" in said


@pytest.mark.guest
@pytest.mark.slow
def test_a_failing_check_is_told() -> None:
    said = boot("linux-amd64", "nosuch,spin")
    assert "workload nosuch FAILED there is none of that name" in said
    assert "workload spin ok" in said


def test_a_guest_is_built_anew_where_a_part_of_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, fetched = tmp_path / "linux", tmp_path / "kernel"
    (sources / "workloads").mkdir(parents=True)
    fetched.mkdir()
    parts = [sources / "Makefile", sources / "init", sources / "workloads" / "spin.c"]
    for path in [*parts, sources / "test_boot.py", *(fetched / name for name in ("vmlinuz", "busybox", "version"))]:
        path.write_text("1")
    monkeypatch.setattr(linux, "SOURCES", sources)
    monkeypatch.setattr(linux, "fetch", lambda _: fetched)
    monkeypatch.setattr(making, "make", lambda *_words, **_variables: None)
    kernel = linux.Kernel("linux-image", "x86_64")
    built = {linux.build(kernel)}
    (sources / "test_boot.py").write_text("2")
    assert linux.build(kernel) in built
    for part in parts:
        part.write_text("2")
        assert linux.build(kernel) not in built
        built.add(linux.build(kernel))
    assert all((one / linux.INITRD).read_bytes() and (one / linux.KERNEL).read_text() == "1" for one in built)
