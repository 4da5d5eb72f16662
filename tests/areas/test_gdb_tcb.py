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


def test_watchpoints_are_given_up_where_a_stack_has_grown_into_them(boot: Boot) -> None:
    """An interrupt's frame would be next, and QEMU loses the interrupt or dies."""
    live = boot("clean-nrk")
    text = run_gdb(
        *live.connect,
        "python from gdbext.gdb.stores import StorePoints",
        "python from gdbext.gdb.target import Target",
        "python points = StorePoints(Target())",
        "python low, mid, high = (0x7000, 0x7008), (0x7008, 0x7060), (0x9000, 0x9008)",
        "python print('taken', points.watch([low, mid, high]))",
        "python on = lambda: print('on', [points._points[where].enabled for where in (low, mid, high)])",
        "python points.give_up(0x6ff8); on()",
        "python points.give_up(0x70a8); on()",
        "python points.give_up(0x7098); on()",
        "python points.watch([low, mid, high]); on()",
        "python points.watch([high]); points.give_up(0x8ff8); on()",
        "kill",
    )
    assert "taken True" in text
    assert re.findall(r"^on (.*)$", text, re.MULTILINE) == [
        "[True, True, True]",  # below all of them: frames land further down
        "[True, True, True]",  # above, with room for a frame
        "[False, False, True]",
        "[False, False, True]",
        "[False, False, True]",
    ]
    assert "Traceback" not in text
