"""scripts/soak: what it counts, what it says, its exit status; and a cut of it on a real kernel."""

from __future__ import annotations

import argparse
import json
import re
import signal
from pathlib import Path

import pytest

from gdbext.cli import session
from gdbext.cli.session import Subject
from gdbext.errors import EnvironmentUnusable, UsageError
from gdbext.qemu import guests, images
from gdbext.report.document import RunReport
from gdbext.rules.engine import Counts
from gdbext.sources.knowledge import Knowledge
from tests.linux import soak


def options(*words: str) -> argparse.Namespace:
    return soak.parser().parse_args(words)


def told(tally: soak.Tally, counts: Counts, entries: int, line: str) -> None:
    counts.entries += entries
    counts.exits += entries
    tally.serial(line)


def test_events_are_counted_for_the_workload_under_way() -> None:
    tally, counts = soak.Tally(["signals", "default", "signals32"]), Counts()
    tally.progress(counts, 0)
    told(tally, counts, 10, "guest: start linux 6.1")
    told(tally, counts, 5, "workload signals ok")
    told(tally, counts, 3, "workload default ok")
    told(tally, counts, 4, "workload files ok")
    told(tally, counts, 6, "workload signals ok")
    told(tally, counts, 2, "workload signals FAILED rbx is 5")
    checked = {name: row.checked for name, row in tally.rows.items()}
    assert checked == {"boot": 20, "signals": 14, "default": 14, "signals32": 12}
    assert [tally.rows[name].runs for name in ("signals", "default", "signals32")] == [2, 1, 1]
    assert tally.rows["signals"].failed == ["workload signals FAILED rbx is 5"]
    assert tally.trouble == []
    tally.serial("[    0.3] RETBleed: WARNING: Spectre v2 mitigation leaves CPU vulnerable to RETBleed attacks")
    assert tally.trouble == []
    trouble = [
        "[    1.0] BUG: scheduling while atomic",
        "[    2.0] WARNING: CPU: 0 PID: 1 at kernel/softirq.c:376 __local_bh_enable_ip+0x8b/0xc0",
        "[    3.0] WARNING: kernel/softirq.c:376 at __local_bh_enable_ip+0x8b/0xc0, CPU#0: init/1",
    ]
    for line in trouble:
        tally.serial(line)
    assert tally.trouble == trouble


def test_a_failed_check_fails_the_result() -> None:
    machine = soak.Machine("linux-amd64", "max", 4, True)
    result = soak.Result(machine, rows={"signals": soak.Row(entries=3, exits=4, runs=1)})
    assert (result.checked, result.failed, result.has_errors) == (7, False, False)
    result.rows["signals"].failed.append("workload signals FAILED")
    assert result.failed
    assert soak.Result(machine, lost=1).failed


def test_machines_are_every_combination_that_there_is() -> None:
    names = [str(machine) for machine in soak.machines(options("linux-amd64", "linux-i386"))]
    assert len(names) == len(set(names)) == 12
    assert "linux-amd64 -cpu max -smp 4 pti=on" in names
    assert not [name for name in names if "i386" in name and "pti" in name]
    (one,) = soak.machines(options("linux-amd64", "--cpu", "max", "--smp", "4", "--pti", "on"))
    assert "pti=on" in one.configured(["spin"], 5, "nohz=off").append.split()
    assert len({machine.guest for machine in soak.machines(options("all"))}) >= 5


def test_every_machine_begins_with_another_workload() -> None:
    machine = soak.Machine("linux-amd64", "max", 1, False)
    orders = [soak.workloads_of(machine, options("all"), turn) for turn in range(4)]
    assert len({order[0] for order in orders}) == 4
    assert len({frozenset(order) for order in orders}) == 1


def test_what_is_no_linux_guest_is_refused() -> None:
    with pytest.raises(UsageError, match="clean-nrk is not a Linux guest"):
        soak.machines(options("clean-nrk"))
    assert soak.main(["clean-nrk"]) == 2


def test_a_run_that_is_ended_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(machine: soak.Machine, _words: object, _seconds: float, _options: object) -> soak.Result:
        if machine.smp == 4:
            raise KeyboardInterrupt
        return soak.Result(machine, rows={"spin": soak.Row(entries=2)})

    monkeypatch.setattr(soak, "soak", ended)
    path = tmp_path / "soak.json"
    with pytest.raises(KeyboardInterrupt):
        soak.main(["linux-i386", "--cpu", "max", "--json", str(path), "--record", str(tmp_path / "kept" / "here")])
    (kept,) = json.loads(path.read_text())
    assert (kept["guest"], kept["smp"], kept["checked"]) == ("linux-i386", 1, 2)
    assert (tmp_path / "kept" / "here").is_dir()
    assert soak.main(["linux-i386", "--record", "/proc/nosuch"]) == 2


def test_a_signal_ends_the_soak_and_not_only_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = RunReport("linux-i386", "probe", counts=Counts(entries=3))
    monkeypatch.setattr(session, "watch", lambda *_: session.Outcome(report, interrupted=signal.SIGTERM))
    monkeypatch.setattr(guests, "build", lambda _guest: Path("/nosuch/bzImage"))
    path = tmp_path / "soak.json"
    assert soak.main(["linux-i386", "--blind", "--json", str(path)]) == 143
    assert [machine["checked"] for machine in json.loads(path.read_text())] == [3]


def test_a_machine_s_name_is_a_file_s() -> None:
    assert (
        soak.Machine("linux-i386", "qemu64,vendor=X", 4, True).slug == "linux-i386_-cpu_qemu64_vendor_X_-smp_4_pti_on"
    )


def test_a_blind_soak_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(subject: Subject, knowledge: Knowledge, *_rest: object) -> None:
        raise UsageError(f"image {subject.image}, {knowledge.policy.edits_others or 'no calls'}")

    def image(_path: Path) -> None:
        raise UsageError("the image is read")

    monkeypatch.setattr(session, "watch", seen)
    monkeypatch.setattr(guests, "build", lambda _guest: Path("/nosuch/bzImage"))
    monkeypatch.setattr(images, "load", image)
    machine = soak.Machine("linux-amd64", "max", 1, False)
    blind = soak.soak(machine, ["spin"], 1, options("linux-amd64", "--blind"))
    assert blind.trouble == ["image None, no calls"]
    with pytest.raises(UsageError, match="the image is read"):
        soak.soak(machine, ["spin"], 1, options("linux-amd64"))


@pytest.mark.guest
@pytest.mark.slow
@pytest.mark.parametrize("pti", ["on", "off"])
def test_a_cut(pti: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        guests.build(guests.find("linux-amd64"))
    except EnvironmentUnusable as error:
        pytest.skip(str(error))
    words = ["linux-amd64", "--minutes", "0.4", "--cpu", "qemu64", "--smp", "1", "--pti", pti, "--nmi", "10"]
    status = soak.main(words)
    said = capsys.readouterr()
    trouble = [line for line in said.out.splitlines() if line.startswith("linux-amd64 -cpu") or " FAILED" in line]
    assert status == 0, "\n".join([*trouble, said.err])
    text = said.out.replace("\n", " ")
    assert re.search(r" 0 findings of severity error, \d+ others, 0 lost", text), text  # probes' changes are warnings
