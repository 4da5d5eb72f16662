"""The session over a real GDB and real guests: connecting, being refused, losing one or the other."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gdbext.errors import EnvironmentUnusable
from gdbext.qemu import guests, probe
from gdbext.qemu.machine import Machine
from gdbext.recording.reader import Recording
from gdbext.recording.replay import Replay
from gdbext.repl.connection import State
from gdbext.repl.debugger import Gdb
from gdbext.repl.links import MachineLink
from gdbext.repl.session import Session
from tests.gdb.probed import Probed
from tests.repl.fakes import MemoryScreen, scenario, terminal

pytestmark = [pytest.mark.gdb, pytest.mark.guest]


@asynccontextmanager
async def session() -> AsyncIterator[tuple[Session, MemoryScreen]]:
    screen = MemoryScreen()
    opened = Session(screen)
    try:
        yield opened, screen
    finally:
        await opened.close()


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


def shown(screen: MemoryScreen) -> str:
    return "".join(text + ("" if kind in ("gdb", "log") else "\n") for kind, text in screen.lines)


@pytest.fixture
def machine() -> Iterator[Machine]:
    guest = guests.find("nrk-rflags")
    with Machine(guest.command(guests.build(guest)), gdbstub=True) as machine:
        yield machine


@scenario
async def test_a_bundled_guest_is_booted_run_and_stopped() -> None:
    async with session() as (repl, screen):
        assert await repl.run("boot nrk-rflags")
        assert repl.live.connection.state is State.STOPPED
        assert await repl.run("ctx watch\ncontinue")
        await until(lambda: "guest: start nrk" in screen.of("serial"))
        await until(lambda: len(repl.live.findings) >= 1)
        await until(lambda: repl.live.connection.state is State.RUNNING)
        assert await repl.run("ctx findings"), "commands that need no stopped guest work while it runs"
        repl.live.interrupt()
        await until(lambda: repl.live.connection.state is State.STOPPED)
        await until(lambda: repl.live.facts.cpl is not None)
        assert repl.live.facts.events > 20
        assert await repl.run("x/2i $pc\ninfo registers rip")
        assert "rip " in shown(screen)
        link = repl.live.link
        assert isinstance(link, MachineLink)
        assert link._machine is not None
        pid = link._machine.pid
    assert not Path(f"/proc/{pid}").exists(), "a guest of ours ends with the REPL"


@scenario
async def test_a_qemu_command_line_is_booted_and_watched_through_the_probe() -> None:
    kernel = guests.build(guests.find("nrk-rflags"))
    async with session() as (repl, screen):
        assert await repl.run(f"boot -- qemu-system-x86_64 -serial stdio -display none -kernel {kernel}")
        assert screen.of("note")[-1].startswith("kernel.elf stands before its first instruction")
        assert await repl.run("ctx watch --halt\ncontinue")
        await until(lambda: len(repl.live.findings) == 1 and repl.live.connection.state is State.STOPPED)
        assert "guest: start nrk" in screen.of("serial")
        assert "Watching through the probe in QEMU" in shown(screen)
        assert "stopped at" in shown(screen)
        link = repl.live.link
        assert isinstance(link, MachineLink)
        assert link._machine is not None
        pid, directory = link._machine.pid, link._machine.directory
    assert not Path(f"/proc/{pid}").exists(), "a guest of ours ends with the REPL"
    assert not directory.exists()


@scenario
async def test_a_qemu_that_cannot_have_the_probe_is_booted_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise EnvironmentUnusable("this QEMU has no plugins")

    monkeypatch.setattr(probe, "build", refused)
    async with session() as (repl, screen):
        kernel = guests.build(guests.find("nrk-rflags"))
        assert await repl.run(f"boot -- qemu-system-x86_64 -display none -kernel {kernel}")
        assert "`ctx watch` will use breakpoints" in screen.of("note")[0]
        assert "this QEMU has no plugins" in screen.of("note")[0]
        assert await repl.run("ctx watch")
        assert "watching begins when it loads one" in shown(screen)


@scenario
@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("boot", "nothing to boot"),
        ("boot nrk-rflags -- qemu-system-x86_64", "both a guest and a QEMU command line are given"),
        ("boot --kernel k nrk-rflags", "--kernel goes with a QEMU command line"),
        ("boot -- qemu-system-x86_64 -s", "opens a gdbstub (-s or -gdb) of its own"),
        ("boot -- qemu-system-x86_64 -kernel /nowhere", "QEMU did not start: could not open kernel file '/nowhere'"),
    ],
)
async def test_what_cannot_be_booted_is_refused(line: str, why: str) -> None:
    async with session() as (repl, screen):
        assert not await repl.run(line)
        assert why in screen.of("error")[-1]
        assert repl.live.connection.state is State.IDLE


@scenario
async def test_options_and_files_of_ctxwatch_are_completed_from_a_dash_and_a_slash_on(tmp_path: Path) -> None:
    (tmp_path / "first.arrow").touch()
    (tmp_path / "second").mkdir()
    async with session() as (repl, _):
        await repl.live.ensure_debugger()
        options = [f"ctx watch --{name}" for name in ("halt", "rules", "stream", "via")]
        assert await repl.live.complete("ctx watch --") == options
        assert await repl.live.complete("ctx watch --ha") == ["ctx watch --halt"]
        assert await repl.live.complete(f"ctx record {tmp_path}/fi") == [f"ctx record {tmp_path}/first.arrow"]
        assert await repl.live.complete(f"ctx replay {tmp_path}/") == [
            f"ctx replay {tmp_path}/first.arrow",
            f"ctx replay {tmp_path}/second/",
        ]


@scenario
async def test_somebodys_guest_goes_on_without_us(machine: Machine) -> None:
    async with session() as (repl, screen):
        assert await repl.run(f"connect {machine.gdb}")
        assert await repl.run("break *0x1234567\ncontinue")
        repl.live.interrupt()
        await until(lambda: repl.live.connection.state is State.STOPPED)
    status = machine.qmp.execute("query-status")
    assert status["running"] is True, shown(screen)


@scenario
async def test_a_gdbstub_that_has_a_client_is_told_in_one_line(machine: Machine) -> None:
    async with session() as (first, _), session() as (second, screen):
        assert await first.run(f"connect {machine.gdb}")
        assert not await second.run(f"connect {machine.gdb}")
        assert screen.of("error") == [
            f"{machine.gdb} has a client already: QEMU serves one debugger at a time; end the other one's session"
        ]
        assert second.live.connection.state is State.IDLE
        assert await first.run("info registers rip"), "the first one is not disturbed"
        await first.live.leave()
        assert machine.qmp.execute("query-status")["running"] is True, "nobody waits to stop it again"
        assert await second.run("reconnect")


@scenario
async def test_a_recording_ends_while_the_guest_runs(tmp_path: Path) -> None:
    path = tmp_path / "run.arrow"
    with Probed("clean-nrk") as live:
        async with session() as (repl, screen):
            assert await repl.run(f"connect {live.gdb}\nctx watch\nctx record {path}"), screen.lines
            assert await repl.run("continue")
            await until(lambda: repl.live.facts.events > 100)
            assert not await repl.run(f"ctx record {tmp_path / 'more'}")
            assert await repl.run("ctx record off"), shown(screen)
            assert repl.live.connection.state is State.RUNNING
            assert f"Recorded to {path}." in shown(screen)
    with Recording(path) as recording:
        assert recording.flaw is None
        assert Replay(recording).run().counts.entries > 0


@scenario
async def test_where_gdb_must_judge_a_recording_ends_when_the_guest_stands(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "run.arrow"
    kernel = guests.build(guests.find("nrk-rflags"))
    async with session() as (repl, screen):
        assert await repl.run(f"connect {machine.gdb} --kernel {kernel}\nctx watch\nctx record {path}\ncontinue")
        await until(lambda: repl.live.facts.events > 20)
        assert not await repl.run("ctx record off")
        assert "the guest is running: its last events are judged with its memory" in shown(screen)
        repl.live.interrupt()
        await until(lambda: repl.live.connection.state is State.STOPPED)
        assert await repl.run("ctx record off"), shown(screen)
    with Recording(path) as recording:
        assert recording.flaw is None


def listener(answer: bytes | None) -> tuple[socket.socket, int]:
    """A server that says `answer` to everybody, or nothing at all."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        held = []
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            held.append(peer)
            if answer is not None:
                peer.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return server, int(server.getsockname()[1])


@scenario
async def test_what_speaks_no_gdb_protocol_is_told_in_one_line() -> None:
    for answer in (None, b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"):
        server, port = listener(answer)
        with server:
            async with session() as (repl, screen):
                begun = time.monotonic()
                assert not await repl.run(f"connect 127.0.0.1:{port}")
                (error,) = screen.of("error")
                assert "does not answer" in error or "does not speak GDB's protocol" in error
                assert "\n" not in error
                assert repl.live.connection.state is State.IDLE
                assert time.monotonic() - begun < 12


@scenario
async def test_nobody_there_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    async with session() as (repl, screen):
        begun = time.monotonic()
        assert not await repl.run(f"connect localhost:{port}")
        assert screen.of("error") == [f"nobody listens at localhost:{port}: Connection refused; start QEMU with -gdb"]
        assert time.monotonic() - begun < 5
        assert repl.live.connection.state is State.IDLE


@scenario
async def test_gdb_killed_and_begun_anew() -> None:
    async with session() as (repl, screen):
        assert await repl.run("boot nrk-rflags\nctx watch\ncontinue")
        await until(lambda: len(repl.live.findings) >= 1)
        kept = len(repl.live.findings)
        os.kill(repl.live.debugger._process.pid, signal.SIGKILL)  # type: ignore[union-attr]
        await until(lambda: repl.live.connection.state is State.DEAD)
        assert "GDB is gone: killed by SIGKILL; findings and history are kept" in screen.of("error")[-1]
        assert not await repl.run("info registers")
        assert await repl.run("reconnect")
        assert repl.live.connection.state is State.STOPPED
        assert len(repl.live.findings) == kept
        assert await repl.run("info registers rip")


@scenario
async def test_qemu_killed_and_booted_anew() -> None:
    async with session() as (repl, screen):
        assert await repl.run("boot nrk-rflags\ncontinue")
        await until(lambda: screen.of("serial"))
        os.kill(repl.live.link._machine.pid, signal.SIGKILL)  # type: ignore[union-attr]
        await until(lambda: repl.live.connection.state is State.DEAD)
        assert len(screen.of("error")) == 1
        await asyncio.sleep(0.3)
        assert await repl.run("reconnect"), shown(screen)
        assert repl.live.connection.state is State.STOPPED
        assert await repl.run("info registers rip")


@scenario
async def test_qemu_killed_while_the_guest_stands_still() -> None:
    async with session() as (repl, screen):
        assert await repl.run("boot nrk-rflags")
        os.kill(repl.live.link._machine.pid, signal.SIGKILL)  # type: ignore[union-attr]
        await until(lambda: repl.live.connection.state is State.DEAD)
        assert "nrk-rflags is gone: QEMU was killed by signal 9" in screen.of("error")[0]
        assert await repl.run("reconnect"), shown(screen)


@scenario
async def test_blocks_reach_gdb_whole() -> None:
    async with session() as (repl, screen):
        assert await repl.run("define twice\necho one\\n\necho two\\n\nend\ntwice")
        assert "one\ntwo\n" in shown(screen)
        assert screen.of("log") == []
        assert await repl.run("python\nfor n in range(3):\n  print('n', n)\nend")
        assert "n 2" in shown(screen)


@scenario
async def test_hostile_names_of_a_kernel_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    (tmp_path / "a.s").write_text('.globl "evil\\033[2Jname"\n"evil\\033[2Jname": nop\n')
    subprocess.run(["as", "-o", "a.o", "a.s"], cwd=tmp_path, check=True)
    subprocess.run(["ld", "-e", "0", "-o", "a.elf", "a.o"], cwd=tmp_path, check=True)
    async with terminal(start=Gdb.start) as repl:
        repl.type(f"file {tmp_path}/a.elf\r")
        await repl.until("Reading symbols")
        repl.type("info functions evil\r")
        await repl.until("Reading symbols", r"evil\033[2Jname")


REFUSES = r"""#!/bin/sh
while read -r line; do
  case $line in
    *WORD*) echo "${line%%-*}^error,msg=\"WHY\"" ;;
    *) echo "${line%%-*}^done" ;;
  esac
done
"""
NO_PYTHON = REFUSES.replace("WORD", "python").replace(
    "WHY", r"Scripting in the \\\"Python\\\" language is not supported."
)
TOO_OLD = REFUSES.replace("WORD", "mi-async").replace("WHY", "Undefined set command.")
FAKES = {
    "silent": ("#!/bin/sh\nexit 3\n", "GDB does not start: it ended with status 3"),
    "no python": (NO_PYTHON, "this GDB has no Python"),
    "too old": (TOO_OLD, "GDB cannot load the extension: Undefined set command."),
}


@pytest.mark.parametrize("which", list(FAKES))
def test_a_gdb_that_will_not_do(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, said = FAKES[which]
    (tmp_path / "gdb").write_text(text)
    (tmp_path / "gdb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    async def run() -> None:
        async with session() as (repl, screen):
            assert not await repl.run("info threads")
            assert said in screen.of("error")[0]

    asyncio.run(run())


def test_no_gdb_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    async def run() -> None:
        async with session() as (repl, screen):
            assert not await repl.run("info threads")
            assert screen.of("error") == ["there is no gdb: it is not in PATH; install the package gdb"]

    asyncio.run(run())
