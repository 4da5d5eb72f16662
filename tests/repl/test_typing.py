"""What the prompt does for who types at it: completion, history, editing keys, help."""

from __future__ import annotations

from typing import Any

import pytest
from prompt_toolkit.history import InMemoryHistory

from gdbext.repl.config import Config
from tests.repl.fakes import FakeGdb, scenario, terminal

CONNECT = "connect localhost:1234"


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("reconn\t", "(ctx) reconnect"),
        ("boot nrk-rfl\t", "(ctx) boot nrk-rflags"),
        ("explain CW90\t", "(ctx) explain CW901"),
        ("ctx explain cw90\t", "(ctx) ctx explain CW901"),
        ("p $rb\t", "(ctx) p $rbx"),
        ("break do_sw\t", "(ctx) break do_switch"),
        ("ctx watch --ha\t", "(ctx) ctx watch --halt"),
        ("help watch\t", "(ctx) help watching"),
        ("keys v\t", "(ctx) keys vi"),
    ],
)
@scenario
async def test_completion(typed: str, completed: str) -> None:
    def set_up(gdb: FakeGdb) -> None:
        gdb.completions = {
            "break do_sw": ["break do_switch"],
            "ctx watch ": ["ctx watch --halt", "ctx watch --rules"],
        }

    async with terminal(CONNECT, setup=set_up) as repl:
        await repl.until("stopped │")
        repl.type(typed)
        await repl.until(completed)


@scenario
async def test_completion_of_file_names(tmp_path: Any) -> None:
    (tmp_path / "recording-one.arrow").write_text("")
    async with terminal() as repl:
        await repl.until("(ctx)")
        repl.type(f"open {tmp_path}/recording-o\t")
        await repl.until("recording-one.arrow")


@scenario
async def test_hostile_names_are_escaped_in_the_menu() -> None:
    def set_up(gdb: FakeGdb) -> None:
        gdb.completions = {"break e": ["break evil\x1b[2J", "break even"]}

    async with terminal(CONNECT, setup=set_up) as repl:
        await repl.until("stopped │")
        repl.type("break e\t\t")
        await repl.until(r"evil\x1b[2J")


@scenario
async def test_history_is_offered_and_suggested() -> None:
    history = InMemoryHistory(["break do_switch"])
    async with terminal(history=history) as repl:
        await repl.until("(ctx)")
        repl.type("\x1b[A")
        await repl.until("(ctx) break do_switch")
        repl.type("\x03")
        await repl.until("(ctx)", absent="do_switch")
        repl.type("break d")
        await repl.until("(ctx) break do_switch")
        repl.type("\x1b[C\r")
        await repl.happens(lambda: repl.gdbs.all and "break do_switch" in repl.gdb.commands())


@scenario
async def test_history_is_searched_and_ctrl_c_gives_the_search_up() -> None:
    history = InMemoryHistory(["break do_switch", "continue"])
    async with terminal(history=history) as repl:
        await repl.until("(ctx)")
        repl.type("\x12swi")
        await repl.until("(reverse-i-search)`swi': break do_switch")
        repl.type("\x03")
        await repl.until("(ctx)", absent="reverse-i-search")
        repl.type("\x12swi\r")
        await repl.until("(ctx) break do_switch")


@scenario
async def test_vi_keys_by_configuration_and_by_command() -> None:
    async with terminal(config=Config(keys="vi")) as repl:
        await repl.until("(ctx)")
        repl.type("abc\x1b0xi\x1b")
        await repl.until("(ctx) bc")
    async with terminal() as repl:
        repl.type("keys vi\r")
        await repl.until("editing keys: vi")
        repl.type("abc\x1b0x")
        await repl.until("(ctx) bc")


@scenario
async def test_help_by_topic_and_command() -> None:
    async with terminal() as repl:
        repl.type("help\r")
        await repl.until("help TOPIC:", "connecting", "recordings")
        repl.type("help goto\r")
        await repl.until("Usage: goto EVENT", "Example:")
        await repl.until("(ctx)")
        repl.type("help stepi\r")
        await repl.happens(lambda: repl.gdbs.all and "help stepi" in repl.gdb.commands())
