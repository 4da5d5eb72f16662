"""``ctxwatch learn`` beside running guests: the shipped layouts come out of the code, and live saves agree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gdbext.profiles.profile import Profile, find

pytestmark = pytest.mark.guest

CTXWATCH = str(Path(sys.executable).with_name("ctxwatch"))


def learn(guest: str, out: Path) -> tuple[Profile, str]:
    """The profile learnt from a bundled guest, and what was said meanwhile."""
    done = subprocess.run([CTXWATCH, "learn", guest, "-o", str(out)], capture_output=True, text=True, timeout=200)
    if done.returncode == 2:
        pytest.skip(done.stderr.strip())  # no such kernel to be had
    assert done.returncode == 0, done.stderr
    return find(str(out)), done.stderr


def slots(name: str) -> dict[str, int]:
    layout = find(name).layout
    assert layout is not None
    return layout.slots


@pytest.mark.parametrize("guest", ["clean-nrk", "clean-smp", "clean-lazy-fpu"])
def test_the_nrk_layout(guest: str, tmp_path: Path) -> None:
    profile, said = learn(guest, tmp_path / "mine.toml")
    assert profile.layout is not None
    expected = slots("nrk")
    if guest == "clean-lazy-fpu":  # the osdev style shares the area, but for FS base, which it keeps elsewhere
        expected = {name: at for name, at in expected.items() if name != "fs_base"}
    else:
        assert profile.current == find("nrk").current
        confirmed = re.search(r"(\d+) of (\d+) saves seen live agree", said)
        assert confirmed is not None
        assert int(confirmed[1]) == int(confirmed[2]) > 100
    assert profile.layout.slots == expected


def test_the_layout_of_the_sel4_report(tmp_path: Path) -> None:
    profile, said = learn("clean-ia32", tmp_path / "mine.toml")
    assert profile.layout is not None
    expected = {name: at for name, at in slots("sel4-ia32").items() if not name.endswith("_base")}
    assert {name: at for name, at in profile.layout.slots.items() if name in expected} == expected
    assert re.search(r"[1-9]\d* of \d+ saves seen live agree", said)


@pytest.mark.slow
def test_the_registers_of_linux(tmp_path: Path) -> None:
    """``struct pt_regs``, r15 first, orig_rax where the CPU pushes an error code."""
    profile, _ = learn("linux-amd64", tmp_path / "mine.toml")
    assert profile.layout is not None
    assert profile.layout.slots == slots("linux-amd64")
    assert profile.current == "frame - 128"
    assert profile.data.area is not None
    assert profile.data.area.stack


@pytest.mark.slow
def test_the_registers_of_32_bit_linux(tmp_path: Path) -> None:
    """``struct pt_regs``, ebx first, orig_ax where the CPU pushes an error code; its gs member never holds GS."""
    profile, said = learn("linux-i386", tmp_path / "mine.toml")
    assert profile.layout is not None
    assert profile.layout.slots == slots("linux-i386")
    assert profile.current == find("linux-i386").current
    assert profile.data.area is not None
    assert profile.data.area.stack
    assert "agree" in said  # nothing is said against a whole kernel
