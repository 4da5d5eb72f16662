"""Rules on stacks, code and tracked variables, on rows and real instruction bytes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from gdbext.arch import flags as rf
from gdbext.arch.registers import MSR_FMASK
from gdbext.events.row import NOT_READ, ROW, Batch
from gdbext.rules.engine import Engine
from gdbext.rules.policy import Implication, Policy, Tracked
from tests.rules.rows import KERNEL_RIP, How, Kind, batch, context, entry, exit_, stamp


class Bytes:
    """Code assembled at KERNEL_RIP."""

    def __init__(self, source: str, where: Path) -> None:
        obj, raw = where / "code.o", where / "code.bin"
        subprocess.run(["as", "--64", "-o", obj, "-"], input=source + "\n", text=True, check=True)
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", obj, raw], check=True)
        self._raw = raw.read_bytes()

    def read(self, address: int, length: int) -> bytes:
        offset = address - KERNEL_RIP
        if not 0 <= offset < len(self._raw):
            raise OSError("unmapped")
        return self._raw[offset : offset + length]

    def symbol(self, address: int) -> str | None:
        return None


def found(*rows: Batch, policy: Policy | None = None, guest: Bytes | None = None) -> list[str]:
    """The codes found, the same fed whole and one by one."""
    whole = stamp(batch(*rows))
    results = []
    for feeds in ([whole], [whole[i : i + 1] for i in range(len(whole))]):
        engine = Engine(policy, guest=guest)
        for feed in feeds:
            engine.feed(feed)
        results.append([(finding.code, finding.count) for finding in engine.findings])
    assert results[0] == results[1]
    return [code for code, _ in results[0]]


USES_RED_ZONE = "mov %rdi,-8(%rsp)\n add $1,%rax\n add -8(%rsp),%rax\n ret"


def in_kernel(offset: int, **changes: int) -> Batch:
    ctx = context(2, user=False, rip=KERNEL_RIP + offset, **changes)
    return entry(ctx, frame=ctx["rsp"] - 40)


def test_red_zone_is_live_between_store_and_load(tmp_path: Path) -> None:
    guest = Bytes(USES_RED_ZONE, tmp_path)
    assert found(in_kernel(5), guest=guest) == ["CW305"]
    assert found(in_kernel(0), guest=guest) == []  # not stored yet
    assert found(in_kernel(14), guest=guest) == []  # at the ret, after the last use


def test_red_zones_are_counted_by_event(tmp_path: Path) -> None:
    """Not by batch: a replay has other batches than the live run. ``found`` compares the counts."""
    ctx = context(2, user=False, rip=KERNEL_RIP + 5)
    pair = [in_kernel(5), exit_(ctx, frame=ctx["rsp"] - 40)]
    assert found(*pair * 3, guest=Bytes(USES_RED_ZONE, tmp_path)) == ["CW305"]


def test_red_zone_through_rbp(tmp_path: Path) -> None:
    guest = Bytes("nop\n mov -16(%rbp),%rax\n ret", tmp_path)
    rsp = 0xFFFFFFFF80108000
    assert found(in_kernel(0, rsp=rsp, rbp=rsp), guest=guest) == ["CW305"]
    assert found(in_kernel(0, rsp=rsp, rbp=rsp + 64), guest=guest) == []


def test_indexed_use_of_the_red_zone(tmp_path: Path) -> None:
    loop = "1: mov -64(%rsp,%rax,8),%rcx\n add $1,%rax\n cmp $8,%rax\n jne 1b\n "
    assert found(in_kernel(0), guest=Bytes(loop + "ret", tmp_path)) == ["CW305"]
    assert found(in_kernel(5), guest=Bytes(loop + "ret", tmp_path)) == ["CW305"]
    assert found(in_kernel(0), guest=Bytes(loop + "add $64,%rsp\n ret", tmp_path)) == []


def test_memory_barrier_is_no_use_of_the_red_zone(tmp_path: Path) -> None:
    guest = Bytes("nop\n lock addl $0,-4(%rsp)\n ret", tmp_path)
    assert found(in_kernel(0), guest=guest) == []


def test_bytes_spared_by_alignment(tmp_path: Path) -> None:
    guest = Bytes("nop\n mov -8(%rsp),%rax\n ret", tmp_path)
    assert found(in_kernel(0, rsp=0xFFFFFFFF80108008), guest=guest) == []


@pytest.mark.parametrize(("source", "codes"), [("stosb\n ret", ["CW605"]), ("cld\n stosb\n ret", [])])
def test_direction_flag_reaches_a_call(source: str, codes: list[str], tmp_path: Path) -> None:
    guest = Bytes(source, tmp_path)
    ctx = context(rflags=0x246 | rf.DF)
    assert found(entry(ctx, pc=KERNEL_RIP), guest=guest) == codes
    assert found(entry(context(), pc=KERNEL_RIP), guest=guest) == []


def test_direction_flag_of_what_a_task_interrupted(tmp_path: Path) -> None:
    """A task gate's handler has the flags of its own TSS."""
    by_task = entry(context(rflags=0x246 | rf.DF), pc=KERNEL_RIP)
    by_task["addr"] = 0xC0104000
    assert found(by_task, guest=Bytes("stosb\n ret", tmp_path)) == []


def test_direction_flag_and_fmask(tmp_path: Path) -> None:
    guest = Bytes("stosb\n ret", tmp_path)
    call = entry(context(rflags=0x246 | rf.DF), How.SYSCALL, pc=KERNEL_RIP)

    def fmask(value: int) -> Batch:
        row = np.zeros(1, ROW)
        row["kind"], row["addr"], row["value"], row["mode"] = Kind.BASE, MSR_FMASK, value, 64
        return row

    assert found(call, guest=guest) == []  # FMASK not seen: nothing is known
    assert found(fmask(rf.IF), call, guest=guest) == ["CW605"]
    assert found(fmask(rf.IF | rf.DF), call, guest=guest) == []


def landing(n: int, frame: int, times: int = 1, cpu: int = 0) -> list[Batch]:
    ctx = context(n)
    return [row for _ in range(times) for row in (entry(ctx, frame=frame, cpu=cpu), exit_(ctx, frame=frame, cpu=cpu))]


def test_landing_on_the_stack_of_another_thread() -> None:
    own = [*landing(1, 0x1000, 6), *landing(2, 0x2000, 6)]
    assert found(*own, *landing(1, 0x2000), *landing(2, 0x2000)) == ["CW303"]
    assert found(*own, *landing(1, 0x2000)) == []  # the owner may be dead, its stack another's
    assert found(*own, *landing(3, 0x2000), *landing(2, 0x2000)) == []


def test_landing_on_the_stack_of_a_thread_that_runs_elsewhere() -> None:
    """It is alive: what it does next may never be seen."""
    own = [*landing(1, 0x1000, 6), *landing(2, 0x2000, 6), *landing(1, 0x1000), *landing(2, 0x2000, cpu=1)]
    assert found(*own, *landing(1, 0x2000)[:1]) == ["CW303"]
    assert found(*own, *landing(2, 0x2000, cpu=1)[:1], *landing(1, 0x2000)[:1]) == []


def test_landing_of_a_process_with_the_address_space_of_one_that_has_ended() -> None:
    """Two have ended, and two that began have the address space of one and the stack of the other."""
    own = [*landing(1, 0x1000, 6), *landing(2, 0x2000, 6), *landing(1, 0x1000)]
    begin, near = (exit_(context(1, rip=context(1)["rip"] + there)) for there in (0x100, 7))
    owner_runs = landing(2, 0x2000, cpu=1)
    assert found(*own, begin, *owner_runs, *landing(1, 0x2000)[:1]) == []
    assert found(*own, near, *owner_runs, *landing(1, 0x2000)[:1]) == ["CW303"], "behind an instruction, as emulated"
    assert found(*own, begin, *landing(1, 0x1000, 6), *owner_runs, *landing(1, 0x2000)[:1]) == ["CW303"]


def test_landing_on_the_stack_of_a_process_that_has_ended() -> None:
    own = [*landing(1, 0x1000, 6), *landing(2, 0x2000, 6), *landing(1, 0x1000)]
    begin = exit_(context(2, rip=context(2)["rip"] + 0x100), cpu=1)
    assert found(*own, begin, *landing(1, 0x2000)[:1]) == []


def test_stack_shared_by_threads_is_never_judged() -> None:
    rows = [row for _ in range(8) for n in (1, 2, 3) for row in landing(n, 0x1000)]
    assert found(*rows, *landing(1, 0x2000, 8), *landing(1, 0x1000, 8)) == []


def test_a_thread_that_moves_to_a_cpu_with_a_stack_of_its_own() -> None:
    settled = [*landing(1, 0x1000, 6, cpu=0), *landing(2, 0x2000, 6, cpu=1)]
    assert found(*settled, *landing(1, 0x2000, cpu=1), *landing(2, 0x2000, cpu=1)) == []
    threads = [*settled, *landing(1, 0x1000, cpu=1)]  # the stacks are the threads': CPU 1 has seen two
    assert found(*threads, *landing(1, 0x2000, cpu=1), *landing(2, 0x2000, cpu=1)) == ["CW303"]


def test_context_resumed_twice() -> None:
    old, new = context(), context(rip=0x400180, rbx=77)
    assert found(entry(old), exit_(old), entry(new), exit_(old)) == ["CW404"]
    assert found(entry(old), exit_(old), entry(new), exit_(new)) == []
    turn = context(rcx=78)  # the same place in a loop, since then
    assert found(entry(old), exit_(old), entry(turn), exit_(turn), entry(new), exit_(old)) == ["CW404"]
    assert found(entry(old, How.SYSCALL), exit_(old, How.SYSRET), exit_(old, How.SYSRET)) == []


STATE = Tracked("in_user", preserved=True, implications=(Implication(True, True, 1), Implication(False, True, 0)))


def state(row: Batch, value: int) -> Batch:
    row["tracked"][0][0] = value
    return row


def test_tracked_variable_must_come_back() -> None:
    policy, ctx = Policy(tracked=(STATE,)), context()
    assert found(state(entry(ctx), 1), state(exit_(ctx), 1), policy=policy) == []
    assert found(state(entry(ctx), 1), state(exit_(ctx), 0), policy=policy) == ["CW701"]


def test_a_variable_that_could_not_be_read_shows_nothing() -> None:
    policy, ctx = Policy(tracked=(STATE,)), context()
    assert found(state(entry(ctx), NOT_READ), state(exit_(ctx), 1), policy=policy) == []
    assert found(state(entry(ctx), 1), state(exit_(ctx), NOT_READ), policy=policy) == []


def test_state_contradiction_only_once_entry_is_finished() -> None:
    policy = Policy(tracked=(STATE,))
    kernel = context(2, user=False)
    early = context(2, user=False, rflags=0x46)
    assert found(state(entry(kernel), 1), policy=policy) == ["CW702"]
    assert found(state(entry(early, How.EXCEPTION), 1), policy=policy) == []
    assert found(state(entry(kernel), 0), policy=policy) == []
    assert found(state(entry(context()), 0), policy=policy) == ["CW702"]


def switch(kind: int, rbx: int, back: int = KERNEL_RIP + 0x100) -> Batch:
    row = np.zeros(1, ROW)
    row["kind"], row["mode"], row["rsp"], row["rbx"], row["pc"] = kind, 64, 0xFFFFFFFF80108000, rbx, KERNEL_RIP
    row["stack"][0][0] = back
    return row


def test_switch_that_loses_a_register() -> None:
    assert found(switch(Kind.SWITCH_OUT, 1), switch(Kind.SWITCH_IN, 1)) == []
    assert found(switch(Kind.SWITCH_OUT, 1), switch(Kind.SWITCH_IN, 2)) == ["CW108"]
    assert found(switch(Kind.SWITCH_IN, 2)) == []  # it runs for the first time


def test_what_is_no_switch_of_this_thread() -> None:
    assert found(switch(Kind.SWITCH_OUT, 1), switch(Kind.SWITCH_IN, 2, KERNEL_RIP + 0x200)) == []
    data = 0xFFFFD4F880013DA8
    assert found(switch(Kind.SWITCH_OUT, 1, data), switch(Kind.SWITCH_IN, 2, data)) == []
    pushed = switch(Kind.SWITCH_OUT, 1, 0), switch(Kind.SWITCH_IN, 2, 0)
    for row in pushed:
        row["stack"][0][1] = data
    assert found(*pushed) == []


CALLED = """
    mov %rsp, %gs:8
    mov %gs:16, %rsp
    push %rbx
    push %rsi
    push %rcx
    push %r11
    call body
    {}pop %r11
    pop %rcx
    sysretq
    body: ret
"""
KEEPS_NOTHING, KEEPS_RSI, RETURNS_R10 = "", "mov 16(%rsp), %rsi\n", "mov 24(%rsp), %r10\n"


@pytest.mark.parametrize(
    ("restores", "lost", "expected"),
    [
        (KEEPS_NOTHING, ("rdx", "r8"), [("CW106", "warning", 2)]),
        (KEEPS_NOTHING, ("rdx", "rbx"), [("CW106", "error", 1), ("CW106", "warning", 1)]),
        (KEEPS_RSI, ("rdx", "r8"), [("CW106", "error", 1), ("CW106", "error", 1)]),
        (RETURNS_R10, ("r10", "r8"), [("CW106", "warning", 2)]),
    ],
)
def test_a_call_that_keeps_what_a_function_keeps(
    restores: str, lost: tuple[str, ...], expected: list[tuple[str, str, int]], tmp_path: Path
) -> None:
    engine = Engine(guest=Bytes(CALLED.format(restores), tmp_path))
    leaving = KERNEL_RIP + (33 if restores else 28) + 3
    rows = []
    for name in lost:
        ctx = context()
        rows += [entry(ctx, How.SYSCALL, pc=KERNEL_RIP), exit_(ctx | {name: 0x1234567}, How.SYSRET, pc=leaving)]
    engine.feed(stamp(batch(*rows)))
    assert sorted((f.code, f.severity, f.count) for f in engine.findings) == expected


@pytest.mark.parametrize(
    ("restore", "lost", "severities"),
    [
        ("pop %rbx\n pop %r12", [("rbx", "r12"), ("rbx",)], ["warning"]),
        ("pop %rbx\n pop %r12", [("rbx",)], ["error"]),
        ("pop %rbx\n pop %r12", [("rbx",), ("rbx", "r12")], ["warning", "warning"]),
        ("pop %rbx\n pop %r12", [("rbx", "r13")], ["error"]),
        ("pop %r12\n pop %rbx", [("rbx", "r12")], ["error"]),
    ],
)
def test_a_call_that_puts_results_where_its_paths_keep_registers(
    restore: str, lost: list[tuple[str, ...]], severities: list[str], tmp_path: Path
) -> None:
    path = f"push %r12\n push %rbx\n call body\n {restore}\n iretq\n body: ret\n"
    ctx, frame = context(), 0xFFFF_C900_0000_3FD8
    rows = []
    for names in lost:
        rows.append(entry(ctx, How.SOFT, pc=KERNEL_RIP, frame=frame))
        rows.append(exit_(ctx | dict.fromkeys(names, 0x1234567), pc=KERNEL_RIP + 11, frame=frame))
    engine = Engine(guest=Bytes(path, tmp_path))
    engine.feed(stamp(batch(*rows)))
    assert [(f.code, f.severity) for f in engine.findings] == [("CW106", severity) for severity in severities]


def test_a_call_that_returns_on_the_stack_of_another_puts_no_results(tmp_path: Path) -> None:
    path = "push %r12\n push %rbx\n call body\n pop %rbx\n pop %r12\n iretq\n body: ret\n"
    ctx, frame = context(), 0xFFFF_C900_0000_3FD8
    mine = ctx | {"rbx": 0x1234567, "r12": 0x1234568}
    other = entry(mine | {"rsp": ctx["rsp"] - 0x8000}, How.SOFT, pc=KERNEL_RIP, frame=frame)
    came, back = entry(ctx, How.SOFT, pc=KERNEL_RIP, frame=frame), exit_(mine, pc=KERNEL_RIP + 11, frame=frame)
    engine = Engine(guest=Bytes(path, tmp_path))
    engine.feed(stamp(batch(other, came, back)))
    assert [(f.code, f.severity) for f in engine.findings] == [("CW106", "error")]
