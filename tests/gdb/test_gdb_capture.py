"""From a stop to a row: frames with and without error code, system calls, returns, what cannot be read."""

from __future__ import annotations

import pytest

from gdbext.arch import vectors
from gdbext.arch.registers import GPR64
from gdbext.events.row import Flag, How, Kind
from gdbext.gdb.capture import Capture, Handler

STACK = 0xFFFF_8000_0001_0000
USER_RIP = 0x40_1000


class Memory:
    """Words at addresses; all else is unmapped."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}

    def words(self, address: int, *values: int, size: int = 8) -> None:
        for index, value in enumerate(values):
            self.raw(address + index * size, value.to_bytes(size, "little"))

    def raw(self, address: int, data: bytes) -> None:
        for offset, value in enumerate(data):
            self.bytes[address + offset] = value

    def read(self, address: int, length: int) -> bytes:
        try:
            return bytes(self.bytes[address + offset] for offset in range(length))
        except KeyError as error:
            raise OSError from error


def registers(**changed: int) -> dict[str, int]:
    values = {name: 0x100 + number for number, name in enumerate(GPR64)}
    values |= {"rip": 0xFFFF_8000_0000_1000, "rflags": 0x46, "cs": 8, "ss": 16, "ds": 0, "es": 0, "fs": 0, "gs": 0}
    values |= {"fs_base": 0x7000, "gs_base": 0x8000, "kernel_gs_base": 0x9000, "cr2": 1, "cr3": 0x5000}
    return values | {"rsp": STACK} | changed


def frame(rip: int = USER_RIP, cs: int = 0x33, rflags: int = 0x246) -> tuple[int, ...]:
    return rip, cs, rflags, 0x7FFF_0000, 0x2B, *range(8)


def test_an_interrupt_shows_the_interrupted_context() -> None:
    memory = Memory()
    memory.words(STACK - 8, *frame())
    row = Capture(memory.read).interrupt(1, registers(rsp=STACK - 8), Handler(0x1000, (32,)), 64)
    assert row is not None
    one = row[0]
    assert (one["kind"], one["how"], one["vector"], one["cpu"], one["seq"]) == (Kind.ENTRY, How.INTERRUPT, 32, 1, 1)
    assert (one["rip"], one["cs"], one["rflags"], one["rsp"], one["ss"]) == (USER_RIP, 0x33, 0x246, 0x7FFF_0000, 0x2B)
    assert (one["rax"], one["r15"], one["frame"], one["mode"]) == (0x100, 0x10F, STACK - 8, 64)
    assert one["stack"].tolist() == [USER_RIP, 0x33, 0x246, 0x7FFF_0000, 0x2B, 0, 1, 2]
    assert not one["flags"] & (Flag.ERROR_CODE | Flag.UNREADABLE)


def test_a_page_fault_has_an_error_code_and_int_14_has_none() -> None:
    memory = Memory()
    memory.words(STACK, 7, *frame())
    capture = Capture(memory.read)
    row = capture.interrupt(0, registers(), Handler(0x1000, (vectors.PF,)), 64)
    assert row is not None
    assert (row["error"][0], row["rip"][0], row["frame"][0]) == (7, USER_RIP, STACK + 8)
    assert row["flags"][0] & Flag.ERROR_CODE
    assert row["how"][0] == How.EXCEPTION

    memory.words(STACK - 8, *frame())
    memory.raw(USER_RIP - 2, b"\xcd\x0e")
    handler = Handler(0x1000, (vectors.PF,), callable=True)
    row = capture.interrupt(0, registers(rsp=STACK - 8), handler, 64)
    assert row is not None
    assert (row["rip"][0], row["how"][0]) == (USER_RIP, How.SOFT)
    assert not row["flags"][0] & Flag.ERROR_CODE


def test_an_int_n_is_told_from_an_interrupt_by_the_bytes_before() -> None:
    memory = Memory()
    memory.words(STACK - 8, *frame())
    memory.raw(USER_RIP - 2, b"\xcd\x80")
    capture = Capture(memory.read)
    for handler, how in (
        (Handler(0x1000, (0x80,), callable=True), How.SOFT),
        (Handler(0x2000, (0x81,), callable=True), How.INTERRUPT),
        (Handler(0x3000, (0x80,)), How.INTERRUPT),
    ):
        row = capture.interrupt(0, registers(rsp=STACK - 8), handler, 64)
        assert row is not None
        assert row["how"][0] == how


def test_a_handler_reached_by_a_jump_is_no_entry() -> None:
    memory = Memory()
    memory.words(STACK - 8, *range(0xFFFF_0000, 0xFFFF_0010))
    capture = Capture(memory.read)
    assert capture.interrupt(0, registers(rsp=STACK - 8), Handler(0x1000, (32,)), 64) is None
    assert capture.seq == 0


def test_a_frame_at_the_end_of_mapped_memory_is_whole() -> None:
    memory = Memory()
    top = STACK & ~0xFFF
    memory.words(top - 40, USER_RIP, 0x33, 0x246, 0x7FFF_0000, 0x2B)
    row = Capture(memory.read).iret(0, registers(rsp=top - 40), 8, 2, 64)
    assert (row["rip"][0], row["rsp"][0], row["ss"][0]) == (USER_RIP, 0x7FFF_0000, 0x2B)
    assert not row["flags"][0] & Flag.UNREADABLE


def test_an_unmapped_stack_is_said() -> None:
    row = Capture(Memory().read).iret(0, registers(), 8, 2, 64)
    assert row["flags"][0] & Flag.UNREADABLE
    assert row["frame"][0] == STACK


def test_ia32_frames_hold_a_stack_only_from_another_ring() -> None:
    memory = Memory()
    memory.words(0x9000, 0x1234, 0x08, 0x202, 0xAAAA, 0xBBBB, *range(8), size=4)
    capture = Capture(memory.read)
    row = capture.interrupt(0, registers(rsp=0x9000), Handler(0x1000, (32,)), 32)
    assert row is not None
    assert row["flags"][0] & Flag.NO_STACK
    assert (row["rsp"][0], row["ss"][0]) == (0x900C, 16)
    assert row["r8"][0] == 0

    memory.words(0x9000, 0x1234, 0x1B, 0x202, 0xAAAA, 0x23, *range(8), size=4)
    row = capture.interrupt(0, registers(rsp=0x9000), Handler(0x1000, (32,)), 32)
    assert row is not None
    assert (row["rsp"][0], row["ss"][0]) == (0xAAAA, 0x23)


def test_ia32_error_codes_go_by_what_can_be_a_frame() -> None:
    memory = Memory()
    capture = Capture(memory.read)
    memory.words(0x9000, 0x18, 0x1234, 0x08, 0x202, *range(8), size=4)
    row = capture.interrupt(0, registers(rsp=0x9000), Handler(0x1000, (vectors.GP,)), 32)
    assert row is not None
    assert (row["error"][0], row["rip"][0]) == (0x18, 0x1234)
    memory.words(0x9000, 0x1234, 0x08, 0x202, 0, 0, *range(8), size=4)
    row = capture.interrupt(0, registers(rsp=0x9000), Handler(0x1000, (vectors.GP,)), 32)
    assert row is not None
    assert row["rip"][0] == 0x1234
    assert not row["flags"][0] & Flag.ERROR_CODE


def test_system_calls_and_their_returns() -> None:
    capture = Capture(Memory().read)
    capture.star = 0x0013_0008_0000_0000
    entry = capture.system_call(0, registers(rsp=0x7FFF_0000), 64)
    assert (entry["rip"][0], entry["rflags"][0], entry["rsp"][0]) == (0x101, 0x10B, 0x7FFF_0000)
    assert (entry["cs"][0], entry["ss"][0], entry["vector"][0]) == (0x23, 0x1B, vectors.SYSCALL)
    back = capture.sysret(0, registers(r11=0xFFFF_FFFF_FFFF_FFFF, rcx=USER_RIP), 8, 64)
    assert (back["rip"][0], back["rflags"][0], back["how"][0]) == (USER_RIP, 0x3C7FD7 | 2, How.SYSRET)
    narrow = capture.sysret(0, registers(rcx=0x1_2345_6789), 4, 64)
    assert narrow["rip"][0] == 0x2345_6789
    assert narrow["flags"][0] & Flag.LINEAR32


@pytest.mark.parametrize(("rip", "cs", "self_resume"), [(0x1002, 8, True), (0x1002, 0x33, False), (0x1004, 8, False)])
def test_an_iret_to_the_next_instruction_only_serialises(rip: int, cs: int, self_resume: bool) -> None:
    memory = Memory()
    memory.words(STACK, rip, cs, 0x246, STACK + 40, 16, *range(8))
    row = Capture(memory.read).iret(0, registers(rip=0x1000), 8, 2, 64)
    assert bool(row["flags"][0] & Flag.SELF) == self_resume
