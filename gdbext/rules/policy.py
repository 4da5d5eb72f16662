"""What a profile tells the rules about one kernel. The default assumes nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """Knobs of the rules; every field's default is what holds of any kernel.

    syscall_returns: registers a system call may change (its ABI's results and clobbers).
    user_iopl: True where user code is given IOPL on purpose.
    vm86: True where returns with RFLAGS.VM are legitimate.
    user_redirects: True where the kernel redirects interrupted user code (signals, restartable sequences).
    fixups: addresses that an exception-table fixup may resume at; None when the table is not known.
    """

    syscall_returns: frozenset[str] = frozenset({"rax", "rcx", "r11"})
    user_iopl: bool = False
    vm86: bool = False
    user_redirects: bool = False
    fixups: frozenset[int] | None = None
