"""Whoever is killed, at whatever moment: the guest outlives its reader, all else is told, and nothing stays behind.

``CTXWATCH_KILLS=50`` kills each fifty times.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gdbext.qemu.probe import ProbeBuild, plugin_args
from tests.gdb.conftest import run_gdb, start_gdb
from tests.gdb.probed import Probed

TURNS = int(os.environ.get("CTXWATCH_KILLS", "2"))
pytestmark = [pytest.mark.guest, pytest.mark.timeout(120 + 20 * TURNS)]

CTXWATCH = [sys.executable, "-c", "import sys; from gdbext.cli.main import main; sys.exit(main())"]
READER = """
import sys
from pathlib import Path
from gdbext.sources.probe import ProbeSource
from gdbext.sources.ring_file import RingFile
source = ProbeSource(RingFile.attach(Path(sys.argv[1])), halt=True)
print("reads", flush=True)
while (rows := source.read(1.0)) is not None:
    for cpu in {int(cpu) for cpu in rows["cpu"]}:
        source.release(cpu, halt=False)
"""


def descendants(pid: int) -> dict[int, str]:
    """Process ids below `pid`, with their programs' names."""
    parents: dict[int, tuple[int, str]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            found = re.match(r"(\d+) \((.*)\) \S (\d+)", stat.read_text())
        except OSError:
            continue
        if found is not None:
            parents[int(found[1])] = int(found[3]), found[2]
    below: dict[int, str] = {}
    grown = True
    while grown:
        new = {child: name for child, (parent, name) in parents.items() if parent == pid or parent in below}
        grown = len(new) > len(below)
        below |= new
    return below


class Run:
    """A ``ctxwatch run`` under way, with the processes and the directory that must go with it."""

    def __init__(self, scratch: Path, *words: str) -> None:
        self.scratch = scratch
        self.process = subprocess.Popen(
            [*CTXWATCH, "run", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(scratch)},
        )
        self.below: dict[int, str] = {}
        self.directory: Path | None = None

    def wait_for(self, program: str) -> int:
        """The process id of `program`, once it is there."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.said()
            self.below = descendants(self.process.pid)
            for pid, name in self.below.items():
                if name.startswith(program) and self._finds_directory():
                    return pid
            time.sleep(0.01)
        pytest.fail(f"no {program} in 30 s")

    def _finds_directory(self) -> bool:
        for pid in self.below:
            try:
                words = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            if found := re.search(r"unix:(\S+)/qmp\.sock", words):
                self.directory = Path(found[1])
        return self.directory is not None

    def said(self) -> str:
        """Standard error to its end."""
        return self.process.communicate(timeout=30)[1]

    def assert_nothing_left(self) -> None:
        """All that was started is gone, the directory too."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            left = [pid for pid in self.below if Path(f"/proc/{pid}/cmdline").exists() and _runs(pid)]
            files = list(self.scratch.iterdir())
            if not left and not files and self.directory is not None and not self.directory.exists():
                return
            time.sleep(0.05)
        pytest.fail(f"left behind: {left} of {self.below}, {self.directory}, {files}")


def _runs(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(*words: str) -> Run:
        runs.append(Run(tmp_path, *words))
        return runs[-1]

    yield start
    for started in runs:
        started.process.kill()
        started.process.communicate()


@pytest.mark.parametrize("via", ["probe", "gdbstub"])
def test_killed_ctxwatch_takes_its_guest_along(run: Callable[..., Run], via: str) -> None:
    for _ in range(TURNS):
        started = run("clean-nrk", "--via", via)
        started.wait_for("qemu-system")
        time.sleep(random.uniform(0, 1.5))
        started.below = descendants(started.process.pid)
        started.process.kill()
        started.assert_nothing_left()


@pytest.mark.parametrize(
    ("program", "via", "status"),
    [("qemu-system", "probe", 3), ("qemu-system", "gdbstub", 3), ("gdb", "gdbstub", 2)],
)
def test_a_killed_helper_is_told(run: Callable[..., Run], program: str, via: str, status: int) -> None:
    """The guest's death is 3, that of a program we need is an unusable environment."""
    for _ in range(TURNS):
        started = run("clean-nrk", "--via", via)
        pid = started.wait_for(program)
        time.sleep(random.uniform(0, 1.5))
        started.below = descendants(started.process.pid)
        os.kill(pid, signal.SIGKILL)
        said = started.said()
        assert started.process.returncode == status, said
        assert len(re.findall("killed by (?:SIGKILL|signal 9)", said)) == 1, said
        assert "Traceback" not in said
        started.assert_nothing_left()


def test_a_guest_outlives_its_reader(probe: ProbeBuild, guest: Callable[[str], Path], tmp_path: Path) -> None:
    for turn in range(TURNS):
        ring, serial = tmp_path / f"ring{turn}", tmp_path / f"serial{turn}"
        words = ["-kernel", str(guest("clean-nrk")), "-m", "64M", "-net", "none", "-display", "none"]
        words += ["-serial", f"file:{serial}", *plugin_args(probe, ring, rows=256)]
        qemu = subprocess.Popen([str(probe.qemu), *words], stdin=subprocess.DEVNULL)
        reader = None
        try:
            until(lambda: serial.exists() and "start" in serial.read_text())  # noqa: B023 (called at once)
            reader = subprocess.Popen([sys.executable, "-c", READER, ring], stdout=subprocess.PIPE)
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"reads\n"
            time.sleep(random.uniform(0, 0.3))
            reader.kill()
            until(lambda: "guest: done" in serial.read_text())  # noqa: B023
            assert qemu.poll() is None
        finally:
            for process in filter(None, (reader, qemu)):
                process.kill()
                process.communicate()  # closes the pipe, too
        replayed = subprocess.run(
            [*CTXWATCH, "replay", ring], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert replayed.returncode == 2, replayed.stdout + replayed.stderr
        assert "were overwritten" in replayed.stdout + replayed.stderr
        assert re.search(r"\d+ entries", replayed.stdout), replayed.stdout
        ring.unlink()


@pytest.mark.parametrize("halt", ["", " --halt"])
def test_a_guest_outlives_the_gdb_that_watches_it(halt: str) -> None:
    """A GDB that was attached to a guest with the probe: the guest goes on, and the next GDB can watch it again."""
    for _ in range(TURNS):
        with Probed("clean-nrk") as live:
            gdb = start_gdb(*live.connect, f"ctx watch{halt}", "continue")
            live.printed("guest: start")
            time.sleep(random.uniform(0, 1.0))
            below = descendants(gdb.process.pid)
            gdb.process.kill()
            said = gdb.finish()
            assert "Traceback" not in said
            live.printed("guest: done")
            assert not [pid for pid in below if _runs(pid)]
            of_qemu = {"gdb", "guest.ring", "guest.qmp", "serial", *(path.name for path in live.logs)}
            assert {path.name for path in live.directory.iterdir()} <= of_qemu
            again = run_gdb(*live.connect, "ctx watch", "ctx watch off", "detach")
            assert "Watching through the probe" in again, again
            live.process.terminate()
            live.process.wait(10)
            assert not live.logs


def until(condition: Callable[[], bool], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
