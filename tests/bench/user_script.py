"""What a kernel developer writes today: breakpoints in GDB that log the registers at each interrupt and system call.

Run by ``gdb -batch -x``; the environment names the gdbstub's socket, the addresses, and for how many seconds.
"""

import os
import time

import gdb  # type: ignore[import-not-found,unused-ignore]

REGISTERS = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rip", "eflags", "fs_base", "gs_base", "k_gs_base",
]  # fmt: skip


class Logger(gdb.Breakpoint):  # type: ignore[misc,unused-ignore]
    """Keeps the registers of every hit, and goes on."""

    log: list[list[int]] = []  # noqa: RUF012 (one log for all)
    first = 0.0

    def stop(self) -> bool:
        """Called by GDB at each hit; True ends the session."""
        frame = gdb.newest_frame()
        Logger.first = Logger.first or time.monotonic()
        Logger.log.append([int(frame.read_register(name)) for name in REGISTERS])
        return time.monotonic() - Logger.first > float(os.environ["BENCH_SECONDS"])


gdb.execute("set pagination off")
gdb.execute("set confirm off")
gdb.execute("set architecture i386:x86-64")
gdb.execute(f"target remote {os.environ['BENCH_SOCKET']}")
for address in os.environ["BENCH_ADDRESSES"].split():
    Logger(f"*{address}")
gdb.execute("continue")
seconds = time.monotonic() - Logger.first
print(f"bench: {len(Logger.log)} stops in {seconds} seconds")
gdb.execute("kill")
