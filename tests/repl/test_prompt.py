"""The prompt as a person meets it: typed at through a pipe, read from a screen, over a GDB that is none."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gdbext.errors import CtxwatchError
from gdbext.repl.links import AddressLink, Endpoint
from gdbext.repl.mi import Record
from gdbext.repl.screen import Screen
from gdbext.repl.session import Session
from tests.repl.fakes import FakeGdb, FakeGdbs, MemoryScreen, notify, scenario, terminal

CONNECT = "connect localhost:1234"
FINDING = "ctxwatch: CW102 flags-not-restored at event 7, CPU 0: interrupt 0x20 interrupted 0x401000, CPL 3\n"


@scenario
async def test_it_begins_idle_and_quits() -> None:
    async with terminal() as repl:
        await repl.until("(ctx) ", "idle │ 0 findings")
        repl.type("quit\r")
        assert await repl.ended() == 0


@scenario
async def test_connect_run_stop() -> None:
    async with terminal(CONNECT) as repl:
        await repl.until("localhost:1234 is stopped", "stopped │ 0 findings │ localhost:1234")
        repl.gdb.print["info registers rip"] = "rip  0x401000\n"
        repl.type("info registers rip\r")
        await repl.until("rip  0x401000")
        repl.type("continue\r")
        await repl.until("(ctx running)", "running │ 0 findings │ localhost:1234")
        assert "continue &" in repl.gdb.commands()
        repl.type("\x03")
        await repl.until("Program received signal SIGINT", "stopped │")
        assert repl.gdb.asked.count("-exec-interrupt") == 1
        assert repl.gdb.signals == 0
        assert repl.task is not None
        assert not repl.task.done(), "Ctrl-C is for the guest"


@scenario
async def test_a_guest_there_is_not_costs_no_second_gdb() -> None:
    class SlowGdbs(FakeGdbs):
        async def start(self, *told: Any) -> FakeGdb:
            await asyncio.sleep(0.05)
            return await super().start(*told)

    class Nothing(AddressLink):
        async def open(self) -> Endpoint:
            raise CtxwatchError("there is no such guest")

    gdbs = SlowGdbs()
    session = Session(MemoryScreen(), start=gdbs.start)
    with pytest.raises(CtxwatchError, match="no such guest"):
        await session.live.connect(Nothing("localhost:1"))
    await session.do("p 1")
    assert len(gdbs.all) == 1
    await session.close()


@scenario
async def test_an_interrupt_that_is_lost_is_sent_again() -> None:
    def deaf(gdb: FakeGdb) -> None:
        heard = []

        def stop() -> None:
            heard.append(1)
            if len(heard) == 3:
                gdb.running = False
                gdb.record(notify("stopped"))

        gdb.stop = stop  # type: ignore[method-assign]

    async with terminal(CONNECT, setup=deaf) as repl:
        await repl.until("stopped │")
        repl.type("c\r")
        await repl.until("(ctx running)")
        repl.type("\x03")
        await repl.until("stopped │")
        assert repl.gdb.asked.count("-exec-interrupt") == 3


@scenario
async def test_output_comes_above_a_prompt_that_keeps_what_was_typed() -> None:
    async with terminal(CONNECT) as repl:
        await repl.until("stopped │")
        repl.type("continue\r")
        await repl.until("(ctx running)")
        repl.type("expl")
        await repl.until("(ctx running) expl")
        repl.gdb.record(Record("console", text=FINDING))
        repl.session.screen.serial("guest: \x1b[2J hostile \x07")
        shown = await repl.until("CW102 flags-not-restored", r"│ guest: \x1b[2J hostile \x07")
        assert shown.index("CW102") < shown.index("(ctx running) expl")
        repl.type("ain CW102\r")
        await repl.until("RFLAGS")


@scenario
async def test_the_toolbar_tells_the_state() -> None:
    def set_up(gdb: FakeGdb) -> None:
        gdb.state = {
            "watching": "armed", "events": "100", "findings": "1", "cpu": "1", "cpl": "0", "parity": "user",
            "pc": "0xffffffff80101000", "window": "syscall-entry", "half_switched": "kernel code, user RSP",
        }  # fmt: skip
        gdb.findings = [{"code": "CW102", "name": "n", "event": "7", "count": "1", "lines": ["CW102 whole"]}]

    async with terminal(CONNECT, setup=set_up) as repl:
        await repl.until(
            "CPU 1 │ CPL 0 │ GS user │  in window: syscall-entry  │ 100 events │ 1 finding", "(ctx window)"
        )
        repl.type("status\r")
        await repl.until("0xffffffff80101000 is in a window (syscall-entry): kernel code, user RSP")
        repl.type("continue\r")
        await repl.until("(ctx running)")
        repl.gdb.state = {"watching": "armed", "events": "50100", "findings": "1", "cpu": "1", "parity": "kernel"}
        await repl.until("running │", "GS kernel", "k events/s")
        assert "window" not in repl.toolbar


@scenario
async def test_what_does_not_fit_the_toolbar_is_left_out() -> None:
    def set_up(gdb: FakeGdb) -> None:
        gdb.state = {
            "watching": "armed", "events": "1" * 12, "findings": "0", "cpu": "1", "cpl": "0", "parity": "user",
            "pc": "0xffffffff80101000", "window": "syscall-entry", "half_switched": "kernel code, user RSP",
        }  # fmt: skip

    async with terminal(CONNECT, setup=set_up) as repl:
        await repl.until("1 events │ 0 findings")
        assert repl.toolbar.endswith("events │ 0 findings"), "the guest's title would be cut"


@scenario
async def test_findings_outlive_gdb_and_reconnect_begins_anew() -> None:
    def set_up(gdb: FakeGdb) -> None:
        gdb.state["findings"] = "1"
        gdb.findings = [
            {"code": "CW102", "name": "n", "event": "7", "count": "3", "lines": ["x"], "picture": "\x1b[1mdrawn\x1b[0m"}
        ]

    async with terminal(CONNECT, setup=set_up) as repl:
        await repl.until("1 finding")
        repl.gdb.die()
        await repl.until("GDB is gone: killed by SIGKILL", "(ctx dead)", "dead │")
        repl.type("info registers\r")
        await repl.until("GDB is not running")
        repl.type("findings\r")
        await repl.until("drawn", "seen 3 times")
        repl.gdbs._setup = lambda gdb: None
        repl.type("reconnect\r")
        await repl.until("localhost:1234 is stopped.", "stopped │")
        assert len(repl.gdbs.all) == 2
        assert "1 finding" in repl.toolbar, "what was found before is kept"


@scenario
async def test_a_connection_that_closes_is_dead() -> None:
    async with terminal(CONNECT) as repl:
        await repl.until("stopped │")
        repl.gdb.record(notify("thread-group-exited"))
        await repl.until("the connection to the guest is closed", "(ctx dead)")
        repl.type("reconnect\r")
        await repl.until("is stopped.", "stopped │")
        assert len(repl.gdbs.all) == 1


@scenario
async def test_a_failed_connect_is_back_at_idle() -> None:
    def set_up(gdb: FakeGdb) -> None:
        gdb.refuse["with tcp"] = "localhost:1234: Connection refused."

    async with terminal(setup=set_up) as repl:
        repl.type(f"{CONNECT}\r")
        await repl.until("nobody listens at localhost:1234: Connection refused; start QEMU with -gdb", "idle │")
        repl.gdb.refuse.clear()
        repl.type("reconnect\r")
        await repl.until("stopped │")


@scenario
async def test_what_it_was_to_begin_with_cannot_be_had() -> None:
    def set_up(gdb: FakeGdb) -> None:
        gdb.refuse["with tcp"] = "localhost:1234: Connection refused."

    async with terminal(CONNECT, setup=set_up) as repl:
        with pytest.raises(CtxwatchError, match="nobody listens at localhost:1234: Connection refused"):
            await repl.ended()
        assert "(ctx" not in repl.text(), "the line that tells it takes the prompt's place"


@scenario
async def test_connecting_is_given_up_by_ctrl_c() -> None:
    def set_up(gdb: FakeGdb) -> None:
        gdb.hold["with tcp"] = asyncio.Event()

    async with terminal(setup=set_up) as repl:
        repl.type(f"{CONNECT}\r")
        await repl.until("(ctx connecting)")
        repl.type("\x03")
        await repl.until("connecting to localhost:1234 was given up", "idle │")


@scenario
async def test_what_gdb_refuses_is_shown_once() -> None:
    async with terminal(CONNECT) as repl:
        await repl.until("stopped │")
        repl.gdb.refuse["stepi"] = "ctx safe: stepi is refused: this is a window"
        repl.type("stepi\r")
        shown = await repl.until("stepi is refused")
        assert shown.count("stepi is refused") == 1


@scenario
async def test_what_would_end_gdb_while_the_guest_runs_is_not_tried() -> None:
    async with terminal(CONNECT) as repl:
        await repl.until("stopped │")
        repl.type("continue\r")
        await repl.until("(ctx running)")
        for line in ("disassemble main", "disas /r 0x1000,+8", "x/3i 0x1000", "display/i 0x1000"):
            repl.type(f"{line}\r")
            await repl.until(line)
        await repl.happens(lambda: repl.text().count("the guest is running; Ctrl-C stops it") == 4)
        assert not [command for command in repl.gdb.asked if "0x1000" in command or "disas" in command]


@scenario
async def test_a_running_guest_refuses_in_one_line() -> None:
    async with terminal(CONNECT) as repl:
        await repl.until("stopped │")
        repl.type("continue\r")
        await repl.until("(ctx running)")
        repl.gdb.refuse["x/x"] = "Cannot execute this command while the target is running."
        repl.type("x/x $pc\r")
        shown = await repl.until("the guest is running; Ctrl-C stops it")
        assert "Cannot execute" not in shown


@scenario
async def test_ctrl_d_asks_when_something_is_there() -> None:
    async with terminal(CONNECT) as repl:
        await repl.until("stopped │")
        repl.type("\x04")
        await repl.until("localhost:1234 is stopped. Leave? (y or n)")
        repl.type("n\r")
        await repl.until("(ctx) ", "stopped │")
        repl.type("\x04")
        await repl.happens(lambda: repl.text().count("Leave? (y or n)") == 2)
        repl.type("y\r")
        assert await repl.ended() == 0
        await repl.session.close()
        assert "detach" in repl.gdb.commands(), "somebody else's guest goes on"
        assert repl.gdb.closed


@scenario
async def test_ctrl_d_leaves_at_once_when_idle() -> None:
    async with terminal() as repl:
        await repl.until("(ctx)")
        repl.type("\x04")
        assert await repl.ended() == 0


@scenario
async def test_ctrl_c_clears_the_line_when_nothing_runs() -> None:
    async with terminal() as repl:
        repl.type("some text")
        await repl.until("(ctx) some text")
        repl.type("\x03")
        await repl.until("(ctx)", absent="some text")
        repl.type("\x03")
        await repl.until("Ctrl-D leaves")


@scenario
async def test_gdb_does_not_get_to_kill_unasked() -> None:
    async with terminal(CONNECT) as repl:
        await repl.until("stopped │")
        repl.type("kill\r")
        await repl.until("'kill' ends the session with localhost:1234. Go on? (y or n)")
        repl.type("n\r")
        await repl.until("not done")
        assert "kill" not in repl.gdb.commands()
        repl.type("kill\r")
        await repl.happens(lambda: repl.text().count("Go on? (y or n)") == 2)
        repl.type("y\r")
        await repl.until("idle │")
        assert "kill" in repl.gdb.commands()


@scenario
async def test_a_question_of_a_pasted_command_keeps_what_is_being_typed() -> None:
    async with terminal(CONNECT) as repl:
        await repl.until("stopped │")
        repl.gdb.hold["slow"] = asyncio.Event()
        repl.paste("slow\nkill")
        repl.type("\r")
        await repl.happens(lambda: "slow" in repl.gdb.commands())
        repl.type("expl")
        await repl.until("(ctx) expl")
        repl.gdb.hold["slow"].set()
        await repl.until("Go on? (y or n)")
        repl.type("n\r")
        await repl.until("not done", "(ctx) expl")


@scenario
async def test_pasted_lines_wait_for_enter_and_for_the_guest() -> None:
    async with terminal(CONNECT) as repl:
        await repl.until("stopped │")
        repl.paste("break foo\ncontinue\ninfo registers\nquit")
        await repl.until("info registers")
        await asyncio.sleep(0.2)
        assert "break foo" not in repl.gdb.commands(), "a paste runs nothing by itself"
        repl.type("\r")
        await repl.until("(ctx running)")
        assert "info registers" not in repl.gdb.commands(), "it is for where the guest stops"
        repl.gdb.stop()
        assert await repl.ended() == 0
        assert [c for c in repl.gdb.commands() if c in ("break foo", "continue &", "info registers")] == [
            "break foo", "continue &", "info registers",
        ]  # fmt: skip


@scenario
async def test_what_is_behind_a_refusal_is_not_run() -> None:
    async with terminal(CONNECT) as repl:
        await repl.until("stopped │")
        repl.gdb.refuse["break"] = "No symbol table is loaded."
        repl.paste("break foo\ncontinue\nnext")
        repl.type("\r")
        await repl.until("the 2 commands behind it were not run")
        assert "continue &" not in repl.gdb.commands()


@scenario
async def test_a_block_is_read_to_its_end_and_run_as_a_whole() -> None:
    async with terminal(CONNECT) as repl:
        await repl.until("stopped │")
        repl.type("define both\r")
        await repl.until("> ")
        repl.type("info threads\rif 1\rstepi\rend\r")
        await asyncio.sleep(0.2)
        assert not [c for c in repl.gdb.commands() if c.startswith("source")]
        repl.type("end\r")
        await repl.happens(lambda: [c for c in repl.gdb.commands() if c.startswith("source")])


@scenario
async def test_an_empty_line_repeats_what_gdb_would() -> None:
    async with terminal(CONNECT) as repl:
        await repl.until("stopped │")
        for line in ("stepi", "", "x/4i $pc", "", "info threads", ""):
            repl.type(line + "\r")
            await asyncio.sleep(0.05)
        await repl.happens(lambda: "info threads" in repl.gdb.commands())
        await asyncio.sleep(0.2)
        wanted = ("stepi", "x", "info threads")
        assert [c for c in repl.gdb.commands() if c.startswith(wanted)] == [
            "stepi", "stepi", "x/4i $pc", "x", "info threads",
        ]  # fmt: skip


@scenario
async def test_a_second_command_waits_for_the_first() -> None:
    async with terminal(CONNECT) as repl:
        await repl.until("stopped │")
        gate = repl.gdb.hold["info functions"] = asyncio.Event()
        repl.type("info functions\r")
        await repl.happens(lambda: "info functions" in repl.toolbar)
        repl.type("info threads\r")
        await asyncio.sleep(0.4)
        assert "info threads" not in repl.gdb.commands()
        gate.set()
        await repl.happens(lambda: repl.gdb.commands()[-1] == "info threads")


@scenario
async def test_ctrl_c_stops_a_command_that_gdb_is_at() -> None:
    async with terminal(CONNECT) as repl:
        await repl.until("stopped │")
        repl.gdb.hold["info functions"] = asyncio.Event()
        repl.type("info functions\r")
        await repl.happens(lambda: "info functions" in repl.toolbar)
        repl.type("\x03")
        await repl.happens(lambda: repl.gdb.signals)
        assert repl.gdb.signals == 1


@scenario
async def test_a_gdb_that_hangs_is_ended_by_one_ctrl_c_more() -> None:
    async with terminal(CONNECT) as repl:
        await repl.until("stopped │")
        repl.gdb.hold["info functions"] = asyncio.Event()
        repl.gdb.interrupt = lambda: None  # type: ignore[method-assign]
        repl.type("info functions\r")
        await repl.happens(lambda: "info functions" in repl.toolbar)
        for _ in range(4):
            assert "dead" not in repl.toolbar
            repl.type("\x03")
            await asyncio.sleep(0.1)
        await repl.until("GDB is gone", "(ctx dead)")


@scenario
async def test_instructions_have_colours() -> None:
    async with terminal(CONNECT) as repl:
        await repl.until("stopped │")
        repl.gdb.print["x/i $pc"] = "=> 0x401000 <f+4>:\tmov    %rax,%rbx\n"
        repl.type("x/i $pc\r")
        await repl.until("mov    %rax,%rbx")
        row = next(n for n, line in enumerate(repl._screen.display) if "%rax,%rbx" in line)
        colours = {repl._screen.buffer[row][column].fg for column in range(50)}
        assert len(colours - {"default"}) >= 3


@scenario
async def test_a_wrong_command_line_is_told() -> None:
    async with terminal() as repl:
        for line, said in (
            ("connect", "connect: the following arguments are required: HOST:PORT"),
            ("connect nowhere", "'nowhere' is no address; give HOST:PORT or the path of QEMU's UNIX socket"),
            ("connect localhost:99999", "'localhost:99999' is no address"),
            ("connect /nonexistent/sock", "nobody listens at /nonexistent/sock: No such file or directory"),
            ("boot nrk-rflag", "no bundled guest is called 'nrk-rflag'; did you mean nrk-rflags"),
            ("open /nonexistent", "/nonexistent cannot be read: No such file or directory"),
            ("goto 5", "no recording is open; open FILE first"),
            ("findings 3", "there is no finding 3; there are 0 so far"),
            ("explain CW999", "there is no finding code 'CW999'"),
            ("reconnect now", "reconnect: unrecognized arguments: now"),
            ("boot 'x", "boot: no closing quotation"),
        ):
            repl.type(line + "\r")
            await repl.until(said)
        await repl.until("idle │")


class Endless:
    """A recording that takes for ever to open."""

    def __init__(self, path: Path, screen: Screen, progress: Callable[[int], None]) -> None:
        while True:
            progress(3_400_000)
            time.sleep(0.01)


@scenario
async def test_opening_a_long_recording_is_told_and_given_up_by_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    read = threading.Event()

    class Slow(Endless):
        def __init__(self, path: Path, screen: Screen, progress: Callable[[int], None]) -> None:
            read.wait()
            super().__init__(path, screen, progress)

    monkeypatch.setattr("gdbext.repl.recorded.Recorded", Slow)
    async with terminal() as repl:
        repl.type("open big.arrow\r")
        try:
            await repl.until(" opening big.arrow\n")
        finally:
            read.set()
        await repl.until("opening big.arrow: 3.4 million events")
        repl.type("open other.arrow\r")
        await repl.until("a recording is being opened; Ctrl-C gives it up")
        repl.type("\x03")
        await repl.until("opening big.arrow was given up", "idle │")


@scenario
async def test_who_leaves_waits_for_no_recording_that_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gdbext.repl.recorded.Recorded", Endless)
    async with terminal() as repl:
        repl.type("open big.arrow\r")
        await repl.until("opening big.arrow")
        repl.type("\x04")
        assert await repl.ended() == 0
        await repl.session.close()
        await repl.happens(lambda: not repl.session.reading)
