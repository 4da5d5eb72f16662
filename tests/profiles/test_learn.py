"""Learning from the bundled guests' code: the shipped layout comes out, and the printed mistakes are told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gdbext.code.compare import Kind as Fact
from gdbext.code.disasm import Code
from gdbext.code.paths import Entry, Gateway
from gdbext.events.row import ROW, Batch, Kind, concat
from gdbext.profiles.learn import Learnt, confirm, learn
from gdbext.profiles.offline import find_entries
from gdbext.profiles.profile import find
from gdbext.qemu import images
from gdbext.qemu.images import Image
from tests.code.conftest import Assemble
from tests.code.test_code_nrk import NRK_RESTORE, NRK_SAVE
from tests.rules.rows import context, entry, exit_

GUESTS = Path(__file__).parents[1] / "guests"


def build(style: str, defines: str, out: Path, arch: str = "x86_64") -> Image:
    subprocess.run(
        ["make", "-s", "-C", GUESTS, f"OUT={out}", f"ARCH={arch}", f"STYLE={style}", f"DEFS={defines}"], check=True
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


def never_stored(found: Learnt) -> set[str]:
    """The registers that an exit loads, or leaves changed, although a path never stores them."""
    told = [statement for _, statement in found.statements if statement.kind in (Fact.NEVER_STORED, Fact.LOST)]
    return {name for statement in told for name in statement.fields}


def test_clean_guest_gives_the_shipped_layout(tmp_path: Path) -> None:
    shipped = find("nrk").layout
    found = learnt("nrk", "", tmp_path)
    assert shipped is not None
    assert found.slots == shipped.slots
    assert found.current == "[gs:8]"
    assert found.size == shipped.size
    assert found.statements == []
    assert found.profile().area is not None


def test_sel4_on_ia32_gives_the_layout_of_the_report(tmp_path: Path) -> None:
    """All but the bases, which ia32 keeps behind selectors; those follow in the bundled guest's area."""
    image = build("sel4", "", tmp_path, "i386")
    code = Code(image.read, 32)
    found = learn(code, find_entries(code, image.segments, image.symbols.addresses))
    shipped = find("sel4-ia32").layout
    assert shipped is not None
    assert {name: at for name, at in found.slots.items() if at < shipped.size} == {
        name: at for name, at in shipped.slots.items() if not name.endswith("_base")
    }
    assert found.current == f"[{image.symbols.address('ksCurThread'):#x}]"
    assert found.statements == []


def test_a_frame_in_the_save_area_itself(tmp_path: Path) -> None:
    """As on ia32, but system calls leave RCX and R11 to RIP and RFLAGS; their slots are what interrupts say."""
    image = build("sel4", "", tmp_path)
    code = Code(image.read, 64)
    found = learn(code, find_entries(code, image.segments, image.symbols.addresses))
    order = "rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15 fault_rip error rip cs rflags rsp ss fs_base"
    assert found.slots == {name: 8 * at for at, name in enumerate(order.split())}
    assert not found.on_stack
    assert found.current == f"[{image.symbols.address('ksCurThread'):#x}]"
    assert found.statements == []


def test_flags_that_are_never_stored(tmp_path: Path) -> None:
    found = learnt("nrk", "BUG_NRK_RFLAGS", tmp_path)
    assert never_stored(found) == {"rflags"}
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
    assert never_stored(learnt("osdev", "BUG_CALLEE_LOST", tmp_path)) == {"rbx"}


def test_the_printed_nrk_paths(assemble: Assemble) -> None:
    snippet = assemble(NRK_SAVE.format(more="") + NRK_RESTORE.format(cs=19).replace("restore:", "", 1))
    found = learn(snippet.code, [Entry(snippet["entry"])])
    told = {(s.kind, s.fields, s.word) for _, s in found.statements}
    assert (Fact.NEVER_STORED, ("rflags",), 17) in told
    assert (Fact.CLASH, ("cs", "fs_base"), 19) in told
    assert found.current == "[gs:8]"
    assert found.slots["rflags"] == 17 * 8
    assert "cs" not in found.slots  # its slot is the FS base's


def test_rcx_holds_rip_after_syscall_but_has_a_slot_of_its_own(assemble: Assemble) -> None:
    saved = ["rdi", "rsi", "rdx", "rcx", "rax", "r8", "r9", "r10", "r11", "rbx", "rbp", "r12", "r13", "r14", "r15"]
    pushes = "".join(f"pushq %{name};" for name in saved)
    pops = "".join(f"popq %{name};" for name in reversed(saved))
    snippet = assemble(f"""
    call: swapgs; movq %rsp, %gs:24; movq %gs:8, %rsp; addq $168, %rsp
        pushq $27; pushq %gs:24; pushq %r11; pushq $35; pushq %rcx; pushq $0
        {pushes} movq %gs:16, %rsp; call handler; movq %gs:8, %rsp
        {pops} addq $8, %rsp; swapgs; iretq
    handler: jmp *%rdx
    """)
    found = learn(snippet.code, [Entry(snippet["call"], Gateway.SYSCALL)])
    assert "fault_rip" not in found.slots
    assert found.slots["rcx"] == 8 * (len(saved) - 1 - saved.index("rcx"))


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


@pytest.mark.parametrize("defines", ["", "BUG_NRK_RFLAGS"])
def test_entries_are_found_in_a_stripped_image(tmp_path: Path, defines: str) -> None:
    build("nrk", defines, tmp_path)
    image = images.load(tmp_path / "kernel-stripped.elf")
    code = Code(image.read, image.bits)
    entries = find_entries(code, image.segments, image.symbols.addresses)
    assert {entry.gateway for entry in entries} == {Gateway.INTERRUPT, Gateway.SYSCALL}
    assert {entry.error_code for entry in entries if entry.gateway is Gateway.INTERRUPT} == {False, True}
    found = learn(code, entries)
    shipped = find("nrk").layout
    assert shipped is not None
    assert found.slots == shipped.slots
    assert never_stored(found) == ({"rflags"} if defines else set())


def test_a_file_without_entries() -> None:
    assert find_entries(Code(lambda _, length: bytes(length), 64), [(0x1000, bytes(64) + b"\x48\xcf")], ()) == []


def test_live_saves_confirm_or_refute(tmp_path: Path) -> None:
    learnt = Learnt(64, {"rax": 0, "rbx": 8, "rcx": 16, "rdx": 24, "rsi": 32, "rip": 40})
    ctx = context()

    def save(wrong: str = "") -> list[Batch]:
        rows = []
        for name, at in learnt.slots.items():
            row = np.zeros(1, ROW)
            row["kind"], row["addr"], row["value"] = Kind.STORE, 0x8000 + at, ctx[name] + (name == wrong)
            rows.append(row)
        return rows

    area = np.zeros(1, ROW)
    area["kind"], area["addr"] = Kind.AREA, 0x8000
    rows = [area, entry(ctx), *save(), exit_(ctx), entry(ctx), *save("rdx"), exit_(ctx), entry(ctx), exit_(ctx)]
    confirm(learnt, concat(rows))
    assert (learnt.confirmed, learnt.tried) == (1, 2)
    assert "confirmed on 1 of 2 live contexts" in learnt.profile_text("it")


def ctxwatch(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("ctxwatch")), *words], capture_output=True, text=True, timeout=120
    )


@pytest.mark.guest
def test_learn_from_a_running_guest(tmp_path: Path) -> None:
    out = tmp_path / "mine.toml"
    done = ctxwatch("learn", "nrk-rflags", "-o", str(out), "--name", "mine")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "never stores RFLAGS" in done.stderr
    mine = find(str(out))
    assert mine.name == "mine"
    assert mine.layout == find("nrk").layout
    assert mine.current == "[gs:8]"


def test_a_profile_that_does_not_come_leaves_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "mine.toml"
    out.write_text("mine")
    assert ctxwatch("learn", "--kernel", __file__, "-o", str(out)).returncode == 2
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "what is to be learnt from is not clear; name one"),
        (["clean-nrk", "--kernel", "x"], "not clear"),
        (["--kernel", "/dev/null"], "cannot read the kernel /dev/null: it is no regular file"),
        (["--kernel", __file__], "neither an ELF file nor"),
        (["--kernel", "/etc/passwd", "-o", "/etc/../etc/passwd"], "it is the kernel itself; choose another name"),
        (["clean-nrk", "-o", "/nowhere/mine.toml"], "cannot write /nowhere/mine.toml: No such file or directory"),
        (["--kernel", "/nowhere"], "cannot read the kernel /nowhere"),
        (["no-such-guest"], "no bundled guest"),
        (["clean-nrk", "--name", "No Name"], "is no name for a profile"),
        (["clean-nrk", "--entries", "0"], "must be more than 0"),
    ],
)
def test_learn_refuses_in_one_line(words: list[str], says: str) -> None:
    done = ctxwatch("learn", *words)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
