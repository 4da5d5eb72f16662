"""Registers in sentences have the names of the interrupted context's mode."""

from __future__ import annotations

import pytest

from gdbext.arch.registers import named_for
from gdbext.profiles.learn import Learnt
from gdbext.rules.engine import Engine
from gdbext.rules.finding import Finding, Place, Writer
from gdbext.sources.discoveries import Discoveries
from tests.rules.rows import Flag, batch, context, entry, exit_, stamp


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ("rcx, rip and RFLAGS differ", "ecx, eip and EFLAGS differ"),
        ("RAX's slot; RSP-4", "EAX's slot; ESP-4"),
        ("save_rax, rax_saved, trap, RSP0, R11, fs_base", "save_rax, rax_saved, trap, RSP0, R11, fs_base"),
        (
            "RDI is loaded from slot 1 ([rdi+0x8]) and RSI from [rsi]",
            "EDI is loaded from slot 1 ([rdi+0x8]) and ESI from [rsi]",
        ),
    ],
)
def test_sentences(wide: str, narrow: str) -> None:
    assert named_for(32, wide) == narrow
    assert named_for(32, narrow) == narrow
    assert named_for(64, wide) == wide


def found(bits: int, **lost: int) -> Finding:
    ctx = context(rip=0x400100, rsp=0x7F0000)
    mode = {"mode": bits, "flags": Flag.LINEAR32 if bits == 32 else 0}
    engine = Engine()
    engine.feed(stamp(batch(entry(ctx, **mode), exit_(ctx | lost, **mode))))
    return engine.findings[0]


def test_causes_have_the_names_of_the_table() -> None:
    flags = found(32, rflags=0x202)
    assert flags.code == "CW102"
    assert "EFLAGS" in flags.cause
    assert "RFLAGS" not in flags.cause + flags.look_at
    assert flags.field == "rflags"  # in documents, a field has its column's name
    assert "RFLAGS" in found(64, rflags=0x202).cause
    lost = found(32, rcx=0x12345678)
    assert "ecx" in lost.cause.lower()
    assert "rcx" not in lost.cause.lower()


def test_registers_that_are_lost_together_are_spoken_of_as_several() -> None:
    one, two = found(64, r12=0x12345678), found(64, r12=0x12345678, r13=0x87654321)
    assert "it was not saved" in one.cause
    assert "loads it from the same slot" in one.look_at
    assert two.cause.startswith("r12 and r13 did not survive the handler: they were not saved")
    assert "loads them from the same slots" in two.look_at


@pytest.mark.parametrize(("bits", "shown"), [(64, "rdi +0x0, rip +0x8"), (32, "edi +0x0, eip +0x8")])
def test_a_layout_that_was_found_out_has_the_names_of_its_mode(bits: int, shown: str) -> None:
    (line,) = Discoveries().lines(Learnt(bits, {"rip": 8, "rdi": 0}, "frame - 8"))
    assert line == f"contexts are kept at frame - 8: {shown}"


def test_what_is_known_is_not_said_again_in_the_names_of_the_other_mode() -> None:
    wide, narrow = (
        Finding("CW102", event, 0, 1, Place(0x400000, None, 3), 0, f"RFLAGS differ{more}", "", bits=bits)
        for event, bits, more in ((1, 64, ""), (5, 32, ". Its slot was written"))
    )
    narrow.writer = Writer(0x1000, None, 4)
    wide.learn_writer(narrow, "RFLAGS differ")
    assert wide.cause == "RFLAGS differ. At event 5, when it came again: Its slot was written"
