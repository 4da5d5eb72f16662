"""``--halt``: the guest stands on the first instruction of the wrong context, and a debugger finds it there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guests_live.watching import watch

pytestmark = pytest.mark.guest

HALTED = re.compile(r"^ctxwatch: halted: CPU (\d+) at .*?(0x[0-9a-f]+)\)?$", re.MULTILINE)


@pytest.mark.parametrize("guest", ["nrk-rflags", "gpr-lost", "gpr-swapped", "syscall-clobber"])
@pytest.mark.parametrize("attempt", range(3))
def test_the_guest_stands_on_the_wrong_context(guest: str, attempt: int) -> None:
    run = watch(guest, "--via", "probe", "--halt")
    assert run.status == 1, run.evidence
    halted = HALTED.search(run.said)
    assert halted is not None, run.evidence
    first = run.document["findings"][0]
    assert int(halted[1]) == first["cpu"], run.evidence
    assert int(halted[2], 16) == int(first["interrupted"]["rip"], 16), run.evidence


def test_through_gdb_it_stands_at_the_exit() -> None:
    run = watch("nrk-rflags", "--via", "gdbstub", "--halt")
    assert run.status == 1, run.evidence
    assert run.codes[0] == "CW102", run.evidence
    assert HALTED.search(run.said), run.evidence


def test_a_clean_guest_is_not_halted() -> None:
    run = watch("clean-smp", "--via", "probe", "--halt")
    assert run.status == 0, run.evidence
    assert not HALTED.search(run.said), run.evidence


def test_gdb_finds_the_halted_guest_there() -> None:
    words = [sys.executable, "-c", "import sys; from gdbext.cli.main import main; sys.exit(main())"]
    child = subprocess.Popen(
        [*words, "run", "nrk-rflags", "--halt", "--hold"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy(),
    )  # fmt: skip
    assert child.stderr is not None
    try:
        place, invitation = "", ""
        for line in child.stderr:
            if found := HALTED.search(line):
                place = found[2]
            if "look at it with" in line:
                invitation = line
            if "Enter ends it" in line:
                break
        target = re.search(r"target remote (\S+)'", invitation)
        assert target is not None
        gdb = ["gdb", "-nx", "-batch", "-ex", "set architecture i386:x86-64", "-ex", f"target remote {target[1]}"]
        said = subprocess.run(
            [*gdb, "-ex", "print/x $rip"], capture_output=True, text=True, timeout=60, check=False
        ).stdout
        assert f"= {place}" in said
    finally:
        _, errors = child.communicate("\n", timeout=60)
    assert child.returncode == 1, errors
    assert not Path(target[1]).parent.exists()
