"""``ctx tcb`` in a real GDB beside a real guest."""

from __future__ import annotations

import re

import pytest

from gdbext.qemu.machine import COUNTED_TIME
from tests.gdb.conftest import Boot, boot, run_gdb

__all__ = ["boot"]

pytestmark = [pytest.mark.gdb, pytest.mark.guest]


def test_areas_are_listed_shown_and_watched(boot: Boot) -> None:
    live = boot("clean-nrk")
    text = run_gdb(
        *live.connect,
        "ctx tcb",
        "ctx profile nrk",
        "hbreak nrk_syscall",
        "continue",
        "ctx tcb list",
        "ctx tcb show",
        "ctx tcb watch rflags",
        "ctx tcb watch zflags",
        "ctx tcb add 1",
        "ctx tcb show -1",
        "ctx tcb watch rflags 0x10000000000000000",
        "ctx tcb frobnicate",
        "continue",
        "ctx tcb show",
        "ctx tcb unwatch",
        "kill",
    )
    assert "no profile: it tells where" in text
    assert "save area at 0xffffffff80" in text
    assert "Watching slot rflags" in text
    assert "no slot 'zflags'; slots are rax" in text
    assert "no save area at 1:" in text
    assert "'-1' is no address; ctx tcb list shows the areas" in text
    assert "'0x10000000000000000' is no address" in text
    assert "what is 'frobnicate'?" in text
    assert "1 slot no longer watched." in text
    assert "Traceback" not in text


def test_a_push_over_a_save_area_halts_the_guest_behind_it(boot: Boot) -> None:
    live = boot("stack-overflow-neighbour", "-icount", COUNTED_TIME)
    text = run_gdb(
        *live.connect,
        "ctx profile nrk",
        "ctx watch --halt --rules CW401",
        "continue",
        "ctx findings",
        "ctx watch off",
        "kill",
        timeout=120,
    )
    assert "CW401 foreign-write at event" in text
    assert re.search(r"stopped before 0x[0-9a-f]+ <sum_below\+0x3>: dec rdi", text), text
    assert "byte 696, last written at sum_below+0x2" in text
    assert "Traceback" not in text
