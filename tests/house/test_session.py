"""How a watched run ends, over a source and a machine that do as they are told."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from gdbext.cli import session
from gdbext.cli.session import Options, Outcome, Subject
from gdbext.events.row import Batch, How, Kind, empty
from gdbext.profiles import profile
from gdbext.qemu.images import Symbols
from gdbext.rules.engine import Engine
from gdbext.sources.base import Capability
from gdbext.sources.knowledge import Knowledge


class Restless:
    """A source whose guest is interrupted all the time and cannot be stopped."""

    name = "restless"
    capabilities = Capability.NONE
    lost = 0

    def __init__(self) -> None:
        self.seq = 0

    def read(self, timeout: float) -> Batch:
        time.sleep(0.01)
        row = empty(1)
        self.seq += 1
        row["seq"], row["time"], row["kind"], row["how"] = self.seq, time.monotonic_ns(), Kind.ENTRY, How.INTERRUPT
        return row

    def release(self, cpu: int, halt: bool) -> None:
        """Nobody waits."""


def unreadable(address: int, length: int) -> bytes:
    """A guest without memory."""
    raise OSError(f"{length} bytes at {address:#x} cannot be read")


def watched(options: Options, lost: int = 0, subject: Subject | None = None) -> tuple[Outcome, float]:
    """The outcome of a watched run over a restless guest, and how many seconds it took. lost: events that it loses."""
    source: Any = Restless()
    source.lost = lost
    machine: Any = SimpleNamespace(
        ending=lambda: None, serial=list, stop=lambda: None, console=SimpleNamespace(partial=""),
        version="0", accelerator="tcg", running=True,
    )  # fmt: skip
    nothing = lambda *_: None  # noqa: E731
    view: Any = SimpleNamespace(note=nothing, detail=nothing, serial=nothing, finding=nothing, progress=nothing)
    feed: Any = SimpleNamespace(name="restless", silence=5.0, slowdown=1.0, plugin_api=None)
    knowledge = Knowledge(profile.find("generic"), Symbols(), nothing)
    knowledge.attach(source, unreadable)
    began = time.monotonic()
    run = session._Run(
        subject or Subject("restless", ("qemu",)),
        knowledge,
        options,
        feed,
        view,
        machine,
        source,
        Engine(knowledge.policy),
        None,
    )
    return run.run(), time.monotonic() - began


@pytest.mark.parametrize("halt", [False, True])
def test_a_run_ends_at_its_time_though_events_keep_coming(halt: bool) -> None:
    outcome, seconds = watched(Options(timeout=0.2, halt=halt))
    assert outcome.status == 0
    assert outcome.report.counts.entries > 1
    assert seconds < 4


def test_a_run_that_lost_events_does_not_look_clean() -> None:
    outcome, _ = watched(Options(timeout=0.1), lost=2)
    assert outcome.status == 3
    assert str(outcome.failure).startswith("2 events were lost: what was interrupted or resumed there was not checked")
    assert outcome.report.document()["events"]["lost"] == 2
    outcome, _ = watched(Options(timeout=0.1), lost=1, subject=Subject("restless", ("qemu",), until="never"))
    assert outcome.status == 3
    assert "never printed 'never'" in str(outcome.failure)  # what the guest did comes first


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_good_order(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    threading.Timer(0.3, os.kill, (os.getpid(), signum)).start()
    outcome, _ = watched(Options(timeout=30))
    assert outcome.status == 128 + signum
    assert outcome.report.counts.entries > 1
    assert signal.getsignal(signum) == before
