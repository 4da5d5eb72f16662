"""The safety mode through the REPL: the same refusals, and windows in its prompt and toolbar."""

from __future__ import annotations

import pytest
from prompt_toolkit.formatted_text import StyleAndTextTuples

from gdbext.repl.connection import State
from gdbext.repl.session import Session
from gdbext.repl.toolbar import message, toolbar
from tests.repl.fakes import scenario
from tests.repl.test_real_gdb import session, shown, until

pytestmark = [pytest.mark.gdb, pytest.mark.guest]


def text(fragments: StyleAndTextTuples) -> str:
    return "".join(fragment[1] for fragment in fragments)


async def stopped(repl: Session, window: str) -> None:
    await until(lambda: repl.live.connection.state is State.STOPPED)
    await until(lambda: repl.live.facts.cpl is not None and repl.live.facts.window == window)


@scenario
async def test_a_step_in_a_window_is_refused_and_a_skip_passes_it() -> None:
    async with session() as (repl, screen):
        assert await repl.run("boot clean-nrk")
        assert await repl.run("tbreak tick if ticks >= 10\ncontinue")
        await stopped(repl, "")
        assert await repl.run("ctx safe override tbreak *(syscall_entry+3)\ncontinue")
        await stopped(repl, "syscall-entry")
        assert "is in a window (syscall-entry)" in shown(screen)
        assert text(message(repl)) == "(ctx window) "
        assert "in window: syscall-entry" in text(toolbar(repl))
        assert not await repl.run("stepi")
        assert "stepi refused" in shown(screen)
        assert not await repl.run("break *syscall_entry")
        assert "refused and deleted" in shown(screen)
        assert await repl.run("ctx skip")
        await stopped(repl, "")
        assert "Arrived at" in shown(screen)
        assert await repl.run("stepi")
