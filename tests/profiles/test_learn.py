"""Learning from the bundled guests' code: the shipped layout comes out, and the printed mistakes are told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gdbext.code.compare import Kind
from gdbext.code.disasm import Code
from gdbext.code.paths import Entry, Gateway
from gdbext.profiles.learn import Learnt, learn
from gdbext.profiles.profile import find
from gdbext.qemu import images
from gdbext.qemu.images import Image
from tests.code.conftest import Assemble
from tests.code.test_code_nrk import NRK_RESTORE, NRK_SAVE

GUESTS = Path(__file__).parents[1] / "guests"


def build(style: str, defines: str, out: Path) -> Image:
    subprocess.run(
        ["make", "-s", "-C", GUESTS, f"OUT={out}", "ARCH=x86_64", f"STYLE={style}", f"DEFS={defines}"], check=True
    )
    return images.load(out / "kernel.elf")


def learnt(style: str, defines: str, out: Path) -> Learnt:
    image = build(style, defines, out)
    stubs, syscall = image.symbols.address("vector_stubs"), image.symbols.address("syscall_entry")
    assert stubs is not None
    assert syscall is not None
    faults = image.symbols.address("page_fault_entry") or stubs + 16 * 14
    entries = [Entry(faults, vector=14), Entry(stubs + 16 * 32, vector=32)]
    return learn(Code(image.read, 64), [*entries, Entry(syscall, Gateway.SYSCALL)])


def test_clean_guest_gives_the_shipped_layout(tmp_path: Path) -> None:
    shipped = find("nrk").layout
    found = learnt("nrk", "", tmp_path)
    assert shipped is not None
    assert found.slots == shipped.slots
    assert found.current == "[gs:8]"
    assert found.size == shipped.size
    assert found.statements == []
    assert found.never == {}
    assert found.profile().area is not None


def test_flags_that_are_never_stored(tmp_path: Path) -> None:
    found = learnt("nrk", "BUG_NRK_RFLAGS", tmp_path)
    assert set(found.never) == {"rflags"}
    (told,) = [statement for _, statement in found.statements]
    assert "never stores RFLAGS" in told.text
    assert told.word == 17
    assert found.slots["rflags"] == 17 * 8  # stored by the system call path, loaded by every exit


def test_context_that_is_copied_only_on_a_switch(tmp_path: Path) -> None:
    found = learnt("osdev", "", tmp_path)
    shipped = find("nrk").layout  # both styles share the area
    assert shipped is not None
    assert not found.on_stack
    assert found.current == ""
    assert found.slots == {name: at for name, at in shipped.slots.items() if name != "fs_base"}
    assert found.statements == []


def test_registers_that_a_thread_switch_forgets(tmp_path: Path) -> None:
    assert set(learnt("osdev", "BUG_CALLEE_LOST", tmp_path).never) == {"rbx"}


def test_the_printed_nrk_paths(assemble: Assemble) -> None:
    snippet = assemble(NRK_SAVE.format(more="") + NRK_RESTORE.format(cs=19).replace("restore:", "", 1))
    found = learn(snippet.code, [Entry(snippet["entry"])])
    told = {(s.kind, s.fields, s.word) for _, s in found.statements}
    assert (Kind.NEVER_STORED, ("rflags",), 17) in told
    assert (Kind.CLASH, ("cs", "fs_base"), 19) in told
    assert found.current == "[gs:8]"
    assert found.slots["rflags"] == 17 * 8
    assert "cs" not in found.slots  # its slot is the FS base's


def test_frames_on_the_stack(assemble: Assemble) -> None:
    registers = ["rdi", "rsi", "rdx", "rcx", "rax", "r8", "r9", "r10", "r11", "rbx", "rbp", "r12", "r13", "r14", "r15"]
    pushes = "".join(f"pushq %{name};" for name in registers)
    pops = "".join(f"popq %{name};" for name in reversed(registers))
    snippet = assemble(f"entry: {pushes} call handler; {pops} iretq; handler: jmp *%rdx")
    found = learn(snippet.code, [Entry(snippet["entry"])])
    assert found.on_stack
    assert found.current == "frame - 120"
    assert found.slots["r15"] == 0
    assert found.slots["rip"] == 120
    assert found.statements == []
    assert found.profile().area is not None


@pytest.mark.parametrize("code", [b"", b"\x90" * 64, b"\xcf", bytes(range(256))])
def test_code_that_saves_nothing(code: bytes) -> None:
    def read(address: int, length: int) -> bytes:
        return code[address - 0x1000 : address - 0x1000 + length]

    found = learn(Code(read, 64), [Entry(0x1000)])
    assert not found.found
    assert "[area]" not in found.profile_text("nothing")
