"""``ctx tcb`` in a real GDB beside a real guest."""

from __future__ import annotations

import pytest

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
    assert "what is 'frobnicate'?" in text
    assert "1 slot no longer watched." in text
    assert "Traceback" not in text
