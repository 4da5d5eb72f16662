"""A host without memory for the probe's records: that is said, and nobody takes the guest's run for whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from gdbext.cli import feeds
from gdbext.errors import EnvironmentUnusable
from gdbext.qemu.probe import ProbeBuild

from .conftest import Watched

pytestmark = pytest.mark.guest


@pytest.fixture
def leave(compiled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have the probe get so many records and no more."""

    def leave_(records: int) -> None:
        monkeypatch.setenv("LD_PRELOAD", str(compiled("no_memory.c", "-shared", "-fPIC")))
        monkeypatch.setenv("NO_MEMORY_AFTER", str(records))

    return leave_


@pytest.mark.parametrize(("records", "stores"), [(0, False), (2, True)], ids=["vcpus", "one-of-two"])
def test_it_does_not_begin(probe: ProbeBuild, leave: Callable[[int], None], records: int, stores: bool) -> None:
    wishes = feeds.Wishes(stores=stores)
    with contextlib.closing(feeds.ProbeFeed(probe, wishes)) as feed:
        leave(records)
        with pytest.raises(EnvironmentUnusable, match="the probe cannot start: no memory for 2 vCPUs"):
            feeds.start([str(probe.qemu), "-smp", "2", "-net", "none"], feed)


@pytest.mark.parametrize("records", [2, 3, 10, 60], ids=["translator", "table", "few", "some"])
def test_it_goes_on(
    watch: Callable[..., Watched], guest: Callable[[str], Path], leave: Callable[[int], None], records: int
) -> None:
    leave(records)
    watched = watch("-kernel", str(guest("clean-nrk")))
    watched.machine.cont()
    watched.run(watched.done)
    assert watched.source.lost == 1
