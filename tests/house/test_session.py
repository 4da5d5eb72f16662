"""How a watched run ends, over a source and a machine that do as they are told."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gdbext.cli import session
from gdbext.cli.session import Options, Outcome, Subject
from gdbext.errors import CtxwatchError
from gdbext.events.row import Batch, How, Kind, empty
from gdbext.profiles import profile
from gdbext.qemu.images import Symbols
from gdbext.qemu.machine import Ending
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

    def read(self, timeout: float) -> Batch | None:
        time.sleep(0.01)
        row = empty(1)
        self.seq += 1
        row["seq"], row["time"], row["kind"], row["how"] = self.seq, time.monotonic_ns(), Kind.ENTRY, How.INTERRUPT
        return row

    def release(self, cpu: int, halt: bool) -> None:
        """Nobody waits."""


class Ended(Restless):
    """A source that sees its guest's end at once."""

    def read(self, timeout: float) -> Batch | None:
        return None


def unreadable(address: int, length: int) -> bytes:
    """A guest without memory."""
    raise OSError(f"{length} bytes at {address:#x} cannot be read")


def watched(
    options: Options,
    lost: int = 0,
    subject: Subject | None = None,
    source: Restless | None = None,
    ending: Callable[[float], Ending | None] = lambda patience: None,
) -> tuple[Outcome, float]:
    """The outcome of a watched run over a guest, and how many seconds it took. lost: events that it loses; ending: how
    its machine has ended for one who waits so many seconds for it."""
    watching: Any = source or Restless()
    watching.lost = lost
    machine: Any = SimpleNamespace(
        ending=lambda patience=0.0: ending(patience), serial=list, stop=lambda: None, running=True,
        console=SimpleNamespace(partial=""), version="0", accelerator="tcg",
    )  # fmt: skip
    nothing = lambda *_: None  # noqa: E731
    view: Any = SimpleNamespace(note=nothing, detail=nothing, serial=nothing, finding=nothing, progress=nothing)
    feed: Any = SimpleNamespace(name="restless", silence=5.0, slowdown=1.0, plugin_api=None)
    knowledge = Knowledge(profile.find("generic"), Symbols(), nothing)
    knowledge.attach(watching, unreadable)
    began = time.monotonic()
    run = session._Run(
        subject or Subject("restless", ("qemu",)),
        knowledge,
        options,
        feed,
        view,
        machine,
        watching,
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


def test_a_killed_qemu_is_told_though_its_process_goes_after_its_files() -> None:
    killed = Ending("killed", "QEMU was killed by signal 9")
    subject = Subject("ended", ("qemu",), until="never")
    outcome, _ = watched(
        Options(timeout=5), subject=subject, source=Ended(), ending=lambda wait: killed if wait else None
    )
    assert outcome.status == 3
    assert str(outcome.failure).startswith(killed.detail)


@pytest.mark.parametrize("killed", [Ending("killed", "QEMU was killed by signal 9"), None])
def test_what_a_source_fails_of_is_no_news_if_qemu_is_gone(killed: Ending | None) -> None:
    class Failing(Restless):
        def read(self, timeout: float) -> Batch | None:
            raise CtxwatchError("the guest cannot be watched", "the connection was closed")

    def run() -> Outcome:
        return watched(Options(timeout=5), source=Failing(), ending=lambda wait: killed if wait else None)[0]

    if killed is None:
        with pytest.raises(CtxwatchError, match="connection was closed"):
            run()
        return
    failure = run().failure
    assert failure is not None
    assert (failure.what, failure.status) == ("QEMU was killed by signal 9", 3)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_good_order(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)

    class Signalled(Restless):
        def read(self, timeout: float) -> Batch | None:
            if self.seq == 3:
                os.kill(os.getpid(), signum)
            return super().read(timeout)

    outcome, _ = watched(Options(timeout=30), source=Signalled())
    assert outcome.status == 128 + signum
    assert outcome.report.counts.entries > 1
    assert signal.getsignal(signum) == before
