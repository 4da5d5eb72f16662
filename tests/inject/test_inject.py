"""Faults injected into running kernels: how places are found and changed, and that the rules say what was changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gdbext.code.disasm import Code
from gdbext.code.paths import Entry
from gdbext.errors import EnvironmentUnusable
from gdbext.qemu import guests, images
from gdbext.qemu.guests import Guest
from gdbext.rules.engine import Engine
from tests.inject import __main__ as main_module
from tests.inject import run, sites, table
from tests.inject.__main__ import SCHEMA, main
from tests.inject.faults import FAULTS, Fault
from tests.inject.patch import NotHere, drop_word, moved, pop, push
from tests.inject.run import FOUND, NO_EFFECT, NOT_HERE, Result, fits, inject
from tests.inject.scene import Expect
from tests.rules.rows import context, entry, exit_

BASE = 0x1000
PUSHES = bytes.fromhex("50 51 52 53 4154 4155 48897c2408 e800000000 0f0b")  # rax rcx rdx rbx r12 r13, a mov of rdi
RESTORE = bytes.fromhex("415c 5b 5a 59 4883c408 48cf")  # pop r12, rbx, rdx, rcx; drop the error code; iretq


def code(data: bytes, bits: int = 64) -> Code:
    def read(address: int, length: int) -> bytes:
        if not BASE <= address < BASE + len(data):
            raise OSError("unmapped")
        return data[address - BASE :][:length]

    return Code(read, bits)


def test_stores_are_found_by_what_they_store() -> None:
    found = {move.field: move.insn.address - BASE for move in sites.stores(code(PUSHES), Entry(BASE, error_code=True))}
    assert found == {"rax": 0, "rcx": 1, "rdx": 2, "rbx": 3, "r12": 4, "r13": 6, "rdi": 8}


def test_loads_are_found_before_an_exit() -> None:
    text = code(RESTORE)
    reach = sites.reached(text, [Entry(BASE)])
    (run,) = sites.loads(text, reach, BASE + len(RESTORE) - 2)
    assert [(move.field, move.insn.address - BASE) for move in run] == [("r12", 0), ("rbx", 2), ("rdx", 3), ("rcx", 4)]


@pytest.mark.parametrize("name", ["rax", "rbx", "rsi", "r8", "r15"])
def test_pushes_and_pops_are_encoded(name: str) -> None:
    for data, mnemonic in ((push(name), "push"), (pop(name), "pop")):
        insn = code(data).insn(BASE)
        assert insn is not None
        assert (insn.mnemonic, insn.op_str, insn.size) == (mnemonic, name, len(data))


@pytest.mark.parametrize(("bits", "shown"), [(64, "lea rsp, [rsp + 8]"), (32, "lea esp, [esp + 4]")])
def test_a_word_is_dropped(bits: int, shown: str) -> None:
    insn = code(drop_word(bits), bits).insn(BASE)
    assert insn is not None
    assert f"{insn.mnemonic} {insn.op_str}" == shown


def test_what_is_relative_to_rip_moves_along() -> None:
    store = code(bytes.fromhex("65488925 00010000")).insn(BASE)  # mov gs:[rip + 0x100], rsp
    assert store is not None
    there = code(b"\x90" * 0x40 + moved(store, BASE + 0x40)).insn(BASE + 0x40)
    assert there is not None
    assert there.operands == store.operands
    compare = code(bytes.fromhex("803d 00010000 01")).insn(BASE)  # cmp byte ptr [rip + 0x100], 1
    assert compare is not None
    with pytest.raises(NotHere):
        moved(compare, BASE + 0x40)


def test_what_must_be_named_alone_does_not_fit_beside_more() -> None:
    engine = Engine()
    (found,) = engine.feed(np.concatenate((entry(context()), exit_(context() | {"rbx": 5, "r12": 6}))))
    assert fits(Expect(("CW101",), frozenset({"rbx"})), found)
    assert not fits(Expect(("CW101",), frozenset({"rbx"}), alone=True), found)
    assert fits(Expect(("CW101",), frozenset({"rbx", "r12"}), alone=True), found)
    assert not fits(Expect(("CW106",)), found)


def test_every_fault_is_for_some_kernel() -> None:
    assert all(fault.bits and set(fault.bits) <= {32, 64} for fault in FAULTS.values())
    assert len(FAULTS) > 100


def result(verdict: str, **more: object) -> dict[str, object]:
    changed = {"address": "0x1000", "symbol": "exit", "before": ["nop", "nop"], "after": ["swapgs"]}
    whole = {
        "guest": "g",
        "fault": "user-rbx",
        "verdict": verdict,
        "says": "why",
        "changed": changed,
        "expected": "CW201",
    }
    return whole | {"beside": [], "events_until_found": 3} | more


def test_the_table_counts_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = result("found", found={"code": "CW201", "field": "gs_base", "cause": "c"})
    missed = result("missed", fault="user-rsp-up")
    path = tmp_path / "r.json"
    path.write_text(
        json.dumps(
            {
                "schema": SCHEMA,
                "injections": [
                    found,
                    missed,
                    result("not applicable", fault="user-tracked"),
                    result("missed", fault="x"),
                ],
            }
        )
    )
    assert main(["--markdown", str(path)]) == 0
    said = capsys.readouterr().out
    assert "| g | 2 | 1 | 0 | 1 | 0 |" in said
    assert "| user-rbx | `exit`: `nop ×2 → swapgs` | CW201 | CW201 gs_base | 3 |" in said
    assert "missed: why" in said
    assert table.told([found, missed]) == "1 found, 1 missed"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no guest is named"),
        (["clean-nrk", "nosuch"], "no fault is called nosuch"),
        (["nosuch", "user-flag-df"], "no bundled guest is called"),
        (["clean-nrk", "--blind", "nosuch"], "no fault is called nosuch"),
        (["--markdown", "/nosuch"], "cannot read /nosuch"),
        (["linux-amd64", "user-flag-df", "--json", "/nosuch/r.json"], "cannot write /nosuch/r.json"),
    ],
)
def test_wrong_usage_is_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err


def test_a_run_that_is_ended_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(guest: Guest, fault: Fault, blind: bool) -> Result:
        if fault.name == "user-flag-df":
            raise KeyboardInterrupt
        return Result(guest.name, fault.name, FOUND, says="blind" if blind else "")

    monkeypatch.setattr(main_module, "inject", ended)
    path = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        main(["linux-amd64", "user-flag-if", "user-flag-df", "--blind", "--json", str(path)])
    kept = json.loads(path.read_text())
    assert kept["summary"] == {"found": 1}
    assert [(one["fault"], one["says"]) for one in kept["injections"]] == [("user-flag-if", "blind")]


def test_a_fault_is_tried_again_where_time_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [Result("g", "f", NOT_HERE, again=True), Result("g", "f", FOUND), Result("g", "f", NOT_HERE)]
    monkeypatch.setattr(run, "_attempt", lambda *_: outcomes.pop(0))
    assert inject(guests.find("linux-amd64"), FAULTS["user-rbx"]).verdict == FOUND
    assert inject(guests.find("linux-amd64"), FAULTS["user-rbx"]).verdict == NOT_HERE
    assert not outcomes


@pytest.mark.guest
@pytest.mark.slow
@pytest.mark.parametrize(
    ("guest", "fault"),
    [
        ("clean-nrk", "interrupt-drop-store-rbx"),
        ("clean-nrk", "skip-swapgs-interrupt-entry"),
        ("clean-ia32-osdev", "user-flag-iopl"),
        ("linux-amd64", "double-swapgs-interrupt-exit"),
        ("linux-amd64", "switch-gs-base"),
        ("linux-amd64", "except-before-the-stack"),
        ("linux-amd64", "except-before-iret"),
        ("linux-amd64-nohz_full", "running-tracked"),
    ],
)
def test_an_injected_fault_is_found_at_its_first_effect(guest: str, fault: str) -> None:
    try:
        images.load(guests.build(guests.find(guest)))
    except EnvironmentUnusable as error:
        pytest.skip(str(error))
    done = inject(guests.find(guest), FAULTS[fault])
    assert done.verdict == FOUND, done.document()
    assert done.injection is not None
    assert done.healthy > 500


@pytest.mark.guest
@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", ["user-flag-df", "interrupt-drop-store-r12", "syscall-drop-store-rbx", "skip-swapgs-interrupt-exit"]
)
def test_nothing_need_be_known_of_the_kernel(fault: str) -> None:
    """KASLR, no names, no profile: what it needs it finds out by itself, and it finds the same."""
    guest = guests.find("linux-amd64")
    try:
        guests.build(guest)
    except EnvironmentUnusable as error:
        pytest.skip(str(error))
    assert "nokaslr" not in guest.append
    done = inject(guest, FAULTS[fault], blind=True)
    assert done.verdict == FOUND, done.document()
    assert done.injection is not None
    assert not done.injection.change.symbol
    for what in ("interrupt table at 0x", "system calls enter at 0x", "GS base: CPU 0 0x", "contexts are kept at"):
        assert any(what in line for line in done.found_out), done.found_out


@pytest.mark.guest
@pytest.mark.slow
def test_a_change_without_effect_is_told_as_such() -> None:
    """RF is no part of the law: the very machinery that finds the others must then find nothing."""
    done = inject(guests.find("clean-nrk"), FAULTS["user-flag-rf"])
    assert done.verdict == NO_EFFECT, done.document()


def test_a_reader_that_leaves_is_no_error() -> None:
    """``scripts/inject --list | head -1``, where it has left before anything is written."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.inject", "--list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141
