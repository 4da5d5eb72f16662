"""What a profile tells the rules about one kernel. The default assumes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from gdbext.arch.addresses import MASK64
from gdbext.rules.fixups import Fixups


@dataclass(frozen=True, slots=True)
class Implication:
    """In user (or kernel) mode the variable must be equal (or unequal) to a value."""

    in_user: bool
    equal: bool
    value: int


@dataclass(frozen=True, slots=True)
class Tracked:
    """One tracked variable; its place in ``Policy.tracked`` is its place in the row's column ``tracked``.

    mask: the bits that count.  preserved: at a resume it must be what it was at the entry.
    """

    name: str
    mask: int = MASK64
    preserved: bool = False
    implications: tuple[Implication, ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a save area keeps each register.

    slots: register column name to byte offset from the area's start.  size: bytes of the whole area.  word: bytes of
    one slot.
    """

    slots: dict[str, int]
    size: int
    word: int = 8

    def slot_at(self, offset: int) -> str | None:
        """The register kept at byte `offset`, or None."""
        for name, start in self.slots.items():
            if start <= offset < start + self.word:
                return name
        return None


@dataclass(frozen=True, slots=True)
class Calls:
    """System calls by number (RAX at the entry): those of 64-bit code by ``syscall``, and those of ia32."""

    native: tuple[int, ...] = ()
    ia32: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.native or self.ia32)


@dataclass(frozen=True, slots=True)
class Policy:
    """Knobs of the rules; every field's default is what holds of any kernel.

    syscall_returns: registers a system call may change (its ABI's results and clobbers), besides what the instructions
        ``syscall`` and ``sysenter`` take.
    user_iopl: True where user code is given IOPL on purpose.
    vm86: True where returns with RFLAGS.VM are legitimate.
    nested_nmi: True where the NMI handler is written to be nested on its own stack.
    user_redirects: True where the kernel redirects interrupted user code (signals, restartable sequences).
    replaces_own: calls that replace their caller's context: the return of a signal handler; none where nobody has said
        which.
    edits_others: calls that may change the context of another thread: a tracer's.
    names_aborts: calls whose fourth argument is the 32-bit signature in front of each address at which an interrupted
        restartable sequence may go on; none where nobody has said which.
    fixups: the kernel's exception table; None when it is not known.
    tracked: variables sampled at every entry and exit, four at most.
    layout: the save area's layout, None when unknown.
    writers: ranges (start, end) of code that may write a save area; None when unknown.
    """

    syscall_returns: frozenset[str] = frozenset({"rax"})
    user_iopl: bool = False
    vm86: bool = False
    nested_nmi: bool = False
    user_redirects: bool = False
    replaces_own: Calls = Calls()
    edits_others: Calls = Calls()
    names_aborts: Calls = Calls()
    fixups: Fixups | None = None
    tracked: tuple[Tracked, ...] = ()
    layout: Layout | None = None
    writers: tuple[tuple[int, int], ...] | None = None

    @property
    def preserved_slots(self) -> tuple[int, ...]:
        """Places in column ``tracked`` of the variables that must come back."""
        return tuple(slot for slot, variable in enumerate(self.tracked) if variable.preserved)
