"""Where to stop, and what event a stop there is: addresses to makers of rows. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from gdbext.arch.registers import MSR_GS_BASE, MSR_KERNEL_GS_BASE
from gdbext.code.disasm import Code, Insn
from gdbext.code.operands import Mem, Reg, linear
from gdbext.code.paths import Exit, MsrAccess, Reach
from gdbext.events.row import Batch, How, Kind
from gdbext.gdb.capture import Capture, Handler
from gdbext.gdb.layout import Registers


@dataclass(frozen=True, slots=True)
class Stop:
    """A vCPU standing at a planned address. ``bits``: of the handler code (16: not yet in protected mode)."""

    cpu: int
    registers: Registers
    bits: int


Maker = Callable[[Stop], Batch | None]
"""Makes the row of a stop, or None if the stop is no event."""
Plan = dict[int, list[Maker]]


def build(
    capture: Capture,
    code: Code,
    reach: Reach,
    handlers: Iterable[Handler],
    syscalls: Iterable[int],
    sysenters: Iterable[int],
) -> Plan:
    """The plan for everything `reach` found. Entries come before whatever else lies at their address."""
    plan: Plan = {}

    def at(address: int, maker: Maker) -> None:
        plan.setdefault(address, []).append(maker)

    for handler in handlers:
        at(handler.address, partial(_interrupt, capture, handler))
    for address in syscalls:
        at(address, partial(_syscall, capture))
    for address in sysenters:
        at(address, partial(_sysenter, capture))
    for address in reach.swapgs:
        at(address, partial(_plain, capture, Kind.SWAPGS))
    for access in reach.msrs:
        insn = code.insn(access.address)
        if insn is not None and _writes_gs_base(access):
            at(access.address, partial(_base, capture, insn))
    for function in reach.switch_functions:
        at(function.entry, partial(_plain, capture, Kind.SWITCH_OUT))
        for end in function.ends:
            at(end, partial(_plain, capture, Kind.SWITCH_IN))
    for leaving in reach.exits:
        insn = code.insn(leaving.address)
        if insn is not None and not leaving.to_itself:
            at(leaving.address, partial(_exit, capture, leaving, insn.size))
    return plan


def _interrupt(capture: Capture, handler: Handler, stop: Stop) -> Batch | None:
    return capture.interrupt(stop.cpu, stop.registers, handler, stop.bits)


def _syscall(capture: Capture, stop: Stop) -> Batch | None:
    return capture.system_call(stop.cpu, stop.registers, stop.bits)


def _sysenter(capture: Capture, stop: Stop) -> Batch | None:
    return capture.sysenter(stop.cpu, stop.registers, stop.bits)


def _plain(capture: Capture, kind: int, stop: Stop) -> Batch | None:
    return capture.plain(kind, stop.cpu, stop.registers, stop.bits)


def _exit(capture: Capture, leaving: Exit, size: int, stop: Stop) -> Batch | None:
    if leaving.how == "iret":
        return capture.iret(stop.cpu, stop.registers, leaving.word, size, stop.bits)
    make = capture.sysret if leaving.how == "sysret" else capture.sysexit
    return make(stop.cpu, stop.registers, leaving.word, stop.bits)


def _writes_gs_base(access: MsrAccess) -> bool:
    """Whether it moves a GS base; an FS base is compared where contexts are resumed and needs no stop of its own."""
    if access.name == "wrmsr":
        return access.msr in (MSR_GS_BASE, MSR_KERNEL_GS_BASE)
    return access.name == "wrgsbase"


def _base(capture: Capture, insn: Insn, stop: Stop) -> Batch | None:
    regs = stop.registers
    if insn.name == "wrgsbase":
        source = insn.destination
        value = regs.get(source.name, 0) if isinstance(source, Reg) else 0
        msr, how = MSR_GS_BASE, How.WRBASE
    else:
        msr, value, how = regs["rcx"] & 0xFFFF_FFFF, written(regs), How.WRMSR
    return capture.plain(Kind.BASE, stop.cpu, regs, stop.bits, addr=msr, value=value, how=how)


def written(registers: Registers) -> int:
    """The value that ``wrmsr`` writes: EDX:EAX."""
    return (registers["rdx"] & 0xFFFF_FFFF) << 32 | registers["rax"] & 0xFFFF_FFFF


def table_operand(insn: Insn, registers: Registers) -> int | None:
    """Linear address of the pseudo-descriptor that ``lidt`` loads, or None if `insn` is no ``lidt``."""
    operand = insn.destination
    return linear(operand, registers) if insn.name == "lidt" and isinstance(operand, Mem) else None
