"""What was recorded comes back: rows, header, memory and names, and with them the same findings."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gdbext.errors import RecordingError, UsageError
from gdbext.events.row import FIELDS
from gdbext.recording import writer
from gdbext.recording.header import parse
from gdbext.recording.mark import Mark
from gdbext.recording.memory import RecordedGuest, RememberingGuest
from gdbext.recording.reader import Recording
from gdbext.recording.writer import Recorder
from gdbext.rules.fixups import Fixups
from gdbext.rules.policy import Calls, Implication, Layout, Policy, Tracked
from tests.recording.sessions import CODE, FakeGuest, busy, header, record, replayed
from tests.rules.rows import KERNEL_RIP

POLICY = Policy(
    syscall_returns=frozenset({"rax", "rdx"}),
    user_iopl=True,
    fixups=Fixups(frozenset({(5, 1 << 63)})),
    tracked=(Tracked("depth", 0xFF, True, (Implication(True, False, 3),)), Tracked("state")),
    layout=Layout({"rip": 0, "rsp": 8}, 64),
    writers=((1, 2), (3, 4)),
    vm86=True,
    nested_nmi=True,
    user_redirects=True,
    replaces_own=Calls((15,), (119, 173)),
    edits_others=Calls((101,)),
    names_aborts=Calls((334,), (386,)),
)


def test_the_policy_that_is_recorded_and_read_back_has_every_field() -> None:
    assert [field.name for field in fields(Policy) if getattr(POLICY, field.name) == field.default] == []


@pytest.mark.parametrize("simd", [False, True])
def test_rows_come_back_bit_for_bit(tmp_path: Path, simd: bool) -> None:
    rows = busy(50, simd=simd)
    record(tmp_path / "r", rows)
    with Recording(tmp_path / "r") as recording:
        back = np.concatenate(list(recording.batches()))
        assert back.dtype == rows.dtype
        assert back.tobytes() == rows.tobytes()
        assert recording.flaw is None


def test_many_batches_and_large_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "ROWS", 100)
    rows = busy(400)
    found = record(tmp_path / "r", rows, size=777)
    assert replayed(tmp_path / "r") == (found, None, len(rows))


def test_replay_finds_the_same(tmp_path: Path) -> None:
    rows = busy()
    found = record(tmp_path / "r", rows)
    assert {finding["code"] for finding in found} >= {"CW101", "CW102"}
    assert replayed(tmp_path / "r") == (found, None, len(rows))


def test_small_batches_are_judged_together_but_not_across_another_answer(tmp_path: Path) -> None:
    rows = busy(5)
    guest = FakeGuest()
    with Recorder(tmp_path / "r", header(), guest, print) as recorder:
        for number, code in enumerate((CODE, CODE, b"\1" * len(CODE))):
            guest.code = code
            recorder.guest.read(KERNEL_RIP, 1)
            recorder.write(rows)
            _wait_for_units(recorder.partial, number + 1)
        recorder.close({})
    with Recording(tmp_path / "r") as recording:
        answers = [(len(part), recording.guest.read(KERNEL_RIP, 1)) for part in recording.columns()]
    assert answers == [(2 * len(rows), CODE[:1]), (len(rows), b"\1")]


def _wait_for_units(path: Path, count: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(RecordingError), Recording(path) as recording:
            if len(recording.index()) >= count:
                return
        time.sleep(0.02)
    raise AssertionError("the recorder wrote nothing")


def test_header_comes_back_whole(tmp_path: Path) -> None:
    about = header(policy=POLICY, codes=frozenset({"CW101"}), profile="nrk", identity={"kernel": "k\u202e.elf"})
    assert parse({k.encode(): v.encode() for k, v in about.metadata().items()}) == about
    record(tmp_path / "r", busy(5), policy=POLICY, codes=frozenset({"CW101"}))
    with Recording(tmp_path / "r") as recording:
        assert recording.header.policy == POLICY
        assert recording.header.codes == frozenset({"CW101"})


def test_the_live_result_is_at_the_end(tmp_path: Path) -> None:
    found = record(tmp_path / "r", busy(60), lost=3)
    with Recording(tmp_path / "r") as recording:
        before = recording.end
        list(recording.batches())
        after = recording.end
        assert before is None
        assert after is not None
        assert after.end == {"events": {"lost": 3}, "seconds": 2.5, "findings": found}


def test_any_arrow_reader_reads_it(tmp_path: Path) -> None:
    rows = busy(50)
    record(tmp_path / "r", rows)
    table = pa.ipc.open_stream(tmp_path / "r").read_all()
    assert table.column_names == [field.name for field in FIELDS]
    assert table["rip"].to_pylist() == rows["rip"].tolist()
    assert table["stack"].to_pylist() == rows["stack"].tolist()
    assert table.schema.field("time").metadata[b"unit"] == b"ns"
    assert all(field.metadata[b"doc"] for field in table.schema)


def test_the_name_is_given_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with Recorder(path, header(), FakeGuest(), print) as recorder:
        recorder.write(busy(5))
        assert not path.exists()
        assert recorder.partial.stat().st_mode & 0o777 == 0o600
        assert recorder.close({})
        assert path.exists()
        assert not recorder.partial.exists()


def test_one_recorder_a_file(tmp_path: Path) -> None:
    with (
        Recorder(tmp_path / "r", header(), FakeGuest(), print) as recorder,
        pytest.raises(UsageError, match="another ctxwatch is recording to it"),
    ):
        Recorder(tmp_path / "r", header(), FakeGuest(), print)
    assert recorder.partial.exists()


def test_a_recording_that_is_finished_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the opening and the locking of the file that was its own until then."""
    (tmp_path / "r.incomplete").write_bytes(b"whole")
    monkeypatch.setattr("fcntl.flock", lambda fd, how: (tmp_path / "r.incomplete").rename(tmp_path / "r"))
    with pytest.raises(UsageError, match="another ctxwatch is recording to it"):
        Recorder(tmp_path / "r", header(), FakeGuest(), print)
    assert (tmp_path / "r").read_bytes() == b"whole"


def _wait_for_events(path: Path, count: int) -> str:
    """Until that many are in the file of a recorder at work; what a replay says of the file."""
    assert writer.DELAY < 1, "the docs promise that a second at most is lost"
    deadline = time.monotonic() + 60
    while True:
        _, flaw, events = replayed(path)
        if events >= count:
            assert flaw is not None
            return flaw
        assert time.monotonic() < deadline, f"{events} of {count} events are in the file"
        time.sleep(0.05)


def test_events_are_in_the_file_while_the_recorder_waits_for_more(tmp_path: Path) -> None:
    with Recorder(tmp_path / "r", header(), FakeGuest(), print) as recorder:
        rows = busy(5)
        recorder.write(rows)
        assert "not finished" in _wait_for_events(recorder.partial, len(rows))


KILLED = """
import sys, time
from pathlib import Path
from gdbext.recording.writer import Recorder
from tests.recording.sessions import CODE, FakeGuest, busy, header
rows = busy(100)
recorder = Recorder(Path(sys.argv[1]), header(), FakeGuest(), print)
for n in range(1000):
    recorder.write(rows)
    print(n, flush=True)
    time.sleep(0.1)
"""


def test_what_was_in_the_file_of_a_killed_recorder_is_not_lost(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "r")]
    written = 25 * len(busy(100))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 25:
                break
        _wait_for_events(tmp_path / "r.incomplete", written)
        process.kill()
    _, flaw, events = replayed(tmp_path / "r.incomplete")
    assert flaw is not None
    assert events >= written


FULL = """
import resource, sys, time
from pathlib import Path
import numpy as np
from gdbext.recording import writer
from gdbext.recording.writer import Recorder
from tests.recording.sessions import CODE, FakeGuest, busy, header
writer.DELAY = 0.02
rows = busy(100)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
with Recorder(Path(sys.argv[1]), header(), FakeGuest(), lambda text: print("note:", text)) as recorder:
    for n in range(200):
        noise = rows.copy()
        noise["rax"] = np.random.default_rng(n).integers(0, 2**63, len(rows))
        recorder.write(noise)
        time.sleep(0.01)
    print("closed:", recorder.close({}))
"""


def test_a_full_disk_stops_the_recording_and_not_the_guest(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "r")], capture_output=True, text=True, check=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["note", "closed"]
    assert "r.incomplete holds what was written so far" in lines[0]
    assert lines[1] == "closed: False"
    _, flaw, events = replayed(tmp_path / "r.incomplete")
    assert events > 0
    assert flaw is not None


def test_bad_places_to_record_to(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "r", Path("/dev/null")):
        with pytest.raises(UsageError, match="cannot record to"):
            Recorder(path, header(), FakeGuest(), print)
    with (
        Recorder(tmp_path / "r", header(), FakeGuest(), print),
        pytest.raises(UsageError, match="another ctxwatch"),
    ):
        Recorder(tmp_path / "r", header(), FakeGuest(), print)


def test_a_left_over_incomplete_file_does_not_stop_the_next(tmp_path: Path) -> None:
    record(tmp_path / "r", busy(5), finish=False)
    rows = busy(6)
    record(tmp_path / "r", rows)
    assert replayed(tmp_path / "r")[2] == len(rows)


def test_memory_is_given_back_as_it_was_read() -> None:
    live, recorded = RememberingGuest(FakeGuest()), RecordedGuest()
    page = KERNEL_RIP & ~0xFFF
    first = live.read(page, 64), live.read(page + 100, 10), live.symbol(KERNEL_RIP + 1)
    with pytest.raises(OSError, match="unmapped"):
        live.read(0x1000, 8)
    recorded.learn(Mark(0, 0, 0, *live.take()))
    assert (recorded.read(page, 64), recorded.read(page + 100, 10), recorded.symbol(KERNEL_RIP + 1)) == first
    assert recorded.read(page + 60, 20) == first[0][60:]
    for address in (0x1000, page + 64, page + 4096):
        with pytest.raises(OSError, match=r"unmapped|not captured"):
            recorded.read(address, 8)
    assert recorded.symbol(KERNEL_RIP + 2) is None
    assert live.take() == ({}, {})


def test_names_of_operators_are_found_again() -> None:
    """As GDB writes those of a kernel in C++."""
    recorded = RecordedGuest()
    recorded.learn(
        Mark(names={0x112: "operator+(Bits, Bits)+0x12", 0x200: "operator++(Bits&)", 0x300: "f+g", 0x400: None})
    )
    assert recorded.functions() == ["f+g", "operator+(Bits, Bits)", "operator++(Bits&)"]
    assert recorded.address("operator+(Bits, Bits)") == 0x100
    assert recorded.address("operator++(Bits&)") == 0x200
    assert recorded.address("f") is None


def test_writing_and_reading_need_no_pandas(tmp_path: Path) -> None:
    """Installed beside PyArrow it would be imported at the first conversion, which takes half a second."""
    steps = (
        "import sys; from pathlib import Path; from tests.recording.sessions import busy, record",
        "from gdbext.recording.reader import Recording",
        f"path = Path({str(tmp_path / 'r')!r}); record(path, busy(50))",
        "assert sum(len(batch['rip']) for batch in Recording(path).columns()) == len(busy(50))",
        "sys.exit('pandas' in sys.modules)",
    )
    assert subprocess.run([sys.executable, "-c", "\n".join(steps)], check=False).returncode == 0
