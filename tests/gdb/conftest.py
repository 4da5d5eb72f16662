"""A GDB process per test, beside a real guest where one is asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gdbext.qemu import guests
from gdbext.qemu.guests import Guest
from gdbext.qemu.machine import Machine
from gdbext.sources.leash import leash

EXTENSION = Path(__file__).parents[2] / "gdbext" / "ctxwatch.py"


@dataclass
class Gdb:
    """One GDB in batch mode. ``text``: what it printed, both streams."""

    process: subprocess.Popen[str]
    text: str = ""

    def finish(self, timeout: float = 150.0) -> str:
        """Wait for its end and return what it printed."""
        try:
            self.text, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.text, _ = self.process.communicate()
            pytest.fail(f"GDB did not end within {timeout} s; it printed:\n{self.text}")
        assert "Fatal signal" not in self.text, self.text
        return self.text

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)


def start_gdb(*commands: str, extension: bool = True, environment: dict[str, str] | None = None) -> Gdb:
    """GDB without init files, running `commands` one after the other."""
    line = ["gdb", "-nx", "-q", "-batch", "-iex", "set debuginfod enabled off"]
    if extension:
        line += ["-ex", f"source {EXTENSION}"]
    for command in commands:
        line += ["-ex", command]
    variables = {**os.environ, **(environment or {})}
    return Gdb(
        subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=variables,
            start_new_session=True,
            preexec_fn=leash(),
        )
    )


def run_gdb(*commands: str, timeout: float = 150.0, **options: object) -> str:
    """What GDB printed for `commands`."""
    return start_gdb(*commands, **options).finish(timeout)  # type: ignore[arg-type]


@dataclass
class Live:
    """A bundled guest in QEMU, stopped at its first instruction, and its image.

    What it prints is read all the time: a guest whose serial line is full waits.
    """

    machine: Machine
    kernel: Path
    stripped: Path
    lines: list[str] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def listen(self) -> None:
        """Run by a thread of its own until ``done``."""
        while not self.done.wait(0.02):
            self.lines += self.machine.serial()

    @property
    def connect(self) -> tuple[str, str]:
        """The GDB commands that attach to it with symbols."""
        return f"file {self.kernel}", f"target remote {self.machine.gdb}"

    def wait_for(self, text: str, seconds: float = 150.0) -> None:
        """Until it printed `text`."""
        self.until(lambda: any(text in line for line in list(self.lines)), seconds, f"{text!r} on the serial line")

    @staticmethod
    def until(condition: Callable[[], object], seconds: float, what: str) -> None:
        """Wait for `condition`."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
            time.sleep(0.02)


Boot = Callable[..., Live]


@pytest.fixture
def boot(request: pytest.FixtureRequest) -> Iterator[Boot]:
    """Boot bundled guests by name, with more words for QEMU; they end with the test. A failing test keeps what they
    printed."""
    with contextlib.ExitStack() as stack:
        alive: list[Live] = []

        def start(name: str, *words: str, running: bool = False) -> Live:
            guest = guests.find(name)
            kernel = guests.build(guest)
            machine = stack.enter_context(Machine((*guest.command(kernel), *words), gdbstub=True))
            live = Live(machine, kernel, guests.build(guest, stripped=True))
            alive.append(live)
            listener = threading.Thread(target=live.listen, daemon=True)
            listener.start()
            stack.callback(listener.join)
            stack.callback(live.done.set)
            if running:
                machine.cont()
            return live

        yield start
        report = getattr(request.node, "rep_call", None)
        if report is not None and report.failed:
            for live in alive:
                with contextlib.suppress(Exception):
                    kept = Path(tempfile.mkdtemp(prefix="ctxwatch-test-")) / "serial.log"
                    kept.write_text("\n".join(live.lines), "utf-8")
                    print(f"serial output kept in {kept}")


def lasting(monkeypatch: pytest.MonkeyPatch, ticks: int) -> None:
    """Have guests run until so many ticks are over."""
    find = guests.find

    def longer(name: str) -> Guest:
        guest = find(name)
        return dataclasses.replace(guest, defines=(*guest.defines, f"TICKS={ticks}"))

    monkeypatch.setattr(guests, "find", longer)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Let fixtures see how the test went."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    setattr(item, f"rep_{report.when}", report)


def bug_free(text: str) -> None:
    """Assert that no Python error of ours surfaced."""
    for mark in ("Traceback", "Python Exception", "Error occurred in Python", "watching failed"):
        assert mark not in text, text
