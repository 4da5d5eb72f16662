"""Register layouts from target descriptions: QEMU's shapes, and broken ones."""

from __future__ import annotations

import pytest

from gdbext.arch.registers import GPR64, SEGMENTS
from gdbext.errors import CtxwatchError
from gdbext.gdb import layout

CORE64 = "".join(f'<reg name="{name}" bitsize="64" type="int64"/>' for name in (*GPR64, "rip"))
SEGMENTS_XML = "".join(f'<reg name="{name}" bitsize="32" type="int32"/>' for name in SEGMENTS)
TARGET = '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target><xi:include href="core.xml"/></target>'


def described(core: str) -> dict[str, str]:
    return {"target.xml": TARGET, "core.xml": f'<feature name="org.gnu.gdb.i386.core">{core}</feature>'}


def test_registers_are_found_behind_others_of_any_size() -> None:
    core = CORE64 + '<reg name="eflags" bitsize="32"/>' + SEGMENTS_XML + '<reg name="st0" bitsize="80"/>'
    core += '<reg name="fs_base" bitsize="64"/><reg name="k_gs_base" bitsize="64"/><reg name="xmm0" bitsize="128"/>'
    files = described(core)
    found = layout.fetch(lambda name: files[name])
    raw = b"".join(value.to_bytes(8, "little") for value in range(1, 18)) + (0x246).to_bytes(4, "little")
    raw += b"".join(value.to_bytes(4, "little") for value in (8, 16, 0, 0, 0, 0)) + bytes(10)
    raw += (0x7000).to_bytes(8, "little") + (0x9000).to_bytes(8, "little") + bytes(16)
    assert found.size == len(raw)
    values = found.decode(raw)
    assert (values["rax"], values["rcx"], values["rip"], values["rflags"]) == (1, 2, 17, 0x246)
    assert (values["cs"], values["ss"]) == (8, 16)
    assert (values["fs_base"], values["kernel_gs_base"]) == (0x7000, 0x9000)


def test_ia32_registers_have_the_columns_of_the_64_bit_ones() -> None:
    names = [
        "eax",
        "ecx",
        "edx",
        "ebx",
        "esp",
        "ebp",
        "esi",
        "edi",
        "eip",
        "eflags",
        "cs",
        "ss",
        "ds",
        "es",
        "fs",
        "gs",
    ]
    files = described("".join(f'<reg name="{name}" bitsize="32"/>' for name in names))
    found = layout.fetch(lambda name: files[name])
    values = found.decode(b"".join(number.to_bytes(4, "little") for number in range(16)))
    assert (values["rcx"], values["rsp"], values["rip"], values["rflags"]) == (1, 4, 8, 9)


def test_a_given_number_moves_the_register() -> None:
    files = described(CORE64 + '<reg name="eflags" bitsize="32"/><reg name="cs" bitsize="32" regnum="40"/>')
    found = layout.fetch(lambda name: files[name])
    assert found.names[-1] == "cs"


@pytest.mark.parametrize(
    ("core", "says"),
    [
        ('<reg name="r0" bitsize="32"/><reg name="pc" bitsize="32"/>', "not an x86"),
        ("<reg name='rax'", "broken"),
        ("", "not an x86"),
    ],
)
def test_other_machines_and_broken_descriptions_are_refused(core: str, says: str) -> None:
    files = described(core)
    with pytest.raises(CtxwatchError, match=says):
        layout.fetch(lambda name: files[name])


def test_descriptions_that_include_each_other_end() -> None:
    with pytest.raises(CtxwatchError):
        layout.fetch(lambda name: TARGET.replace("core.xml", "target.xml"))
