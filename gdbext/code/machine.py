"""A small abstract machine: runs instructions on states whose values are origins.

:func:`execute` runs one instruction on a :class:`State`; control flow is the walker's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gdbext.arch.registers import GPR64, MSR_FS_BASE, MSR_GS_BASE, MSR_KERNEL_GS_BASE, SEGMENTS
from gdbext.code.disasm import Code, Insn
from gdbext.code.operands import Imm, Mem, Operand, Reg
from gdbext.code.state import State
from gdbext.code.values import CPL, Half, Loaded, Place, Result, Start, Value, wrap

FXSAVE_BYTES: Final = 512
"""Legacy area of FXSAVE/XSAVE (Intel SDM vol. 1, 10.5.1)."""
PUSHA_ORDER: Final = GPR64[:8]
"""Intel SDM vol. 2, PUSHA: eax ecx edx ebx esp ebp esi edi."""


def execute(state: State, insn: Insn, code: Code) -> None:
    """Run `insn` on `state`, control transfer excepted (a call does push its return address, a return pops)."""
    _Step(state, insn, code).run()


_READ_ONLY: Final = frozenset(
    {
        "bt", "nop", "endbr64", "endbr32", "cld", "std", "cli", "sti", "clac", "stac", "clts", "lfence", "mfence",
        "sfence", "hlt", "pause", "verw", "verr", "invlpg", "invpcid", "lgdt", "lidt", "ltr", "lldt", "wbinvd", "wait",
        "prefetcht0", "prefetchnta", "prefetchw", "ud2", "int3", "out", "outsb", "fninit", "fnclex", "jmp", "ljmp",
    }
)  # fmt: skip
_FLAG_SAFE: Final = frozenset(
    {"mov", "movabs", "movzx", "lea", "push", "pop", "xchg", "nop", "swapgs", "cli", "sti", "cld"}
)
_SAVE_SIMD: Final = ("fxsave", "xsave")
_LOAD_SIMD: Final = ("fxrstor", "xrstor")
_BASE_OF_MSR: Final = {MSR_FS_BASE: "fs_base", MSR_GS_BASE: "gs_base", MSR_KERNEL_GS_BASE: "kernel_gs_base"}
_MAX_COPY: Final = 128


class _Step:
    """One instruction on one state. Its handler is named after its operand count (2: two or more) and mnemonic."""

    def __init__(self, state: State, insn: Insn, code: Code) -> None:
        self.state = state
        self.insn = insn
        self.code = code
        self.ops = insn.operands

    def run(self) -> None:
        self.state.at = self.insn.address
        name = self.insn.name
        if name not in _FLAG_SAFE and name[0] != "j":
            self.state.if_zero, self.state.zero = "", None
        if name.startswith(_SAVE_SIMD):
            self._save_simd()
        elif name.startswith(_LOAD_SIMD):
            self._load_simd()
        elif name.startswith(("movap", "movup", "movdq")):
            self._xmm()
        else:
            handler: Callable[[], None] | None = getattr(self, f"do{min(len(self.ops), 2)}_{name}", None)
            if handler is not None:
                handler()
            elif name not in _READ_ONLY and name[0] != "j":
                self._unknown()

    # operands

    def place(self, mem: Mem) -> Place:
        """Where `mem` points."""
        state = self.state
        address = state.regs.get(mem.base, Value(None, 0)) if mem.base else Value(None, 0)
        if mem.index:
            index = state.regs.get(mem.index)
            number = index.constant if index else None
            if number is None:
                return Place("", Result(self.insn.address, "address"), 0)
            address = address.plus(number * mem.scale, state.bits)
        address = address.plus(mem.disp, state.bits)
        segment = mem.segment if mem.segment in ("fs", "gs") else ""
        return state.place_of(address, segment)

    def size(self, operand: Operand) -> int:
        """Bytes of an operand; memory whose size is not written takes the word's."""
        return self.state.word if isinstance(operand, Imm) else operand.size or self.state.word

    def read(self, operand: Operand) -> Value:
        """The operand's value."""
        state = self.state
        if isinstance(operand, Imm):
            return Value(None, wrap(operand.value, state.bits, signed=False))
        if isinstance(operand, Mem):
            return state.load(self.place(operand), self.size(operand), self.insn.address)
        value = state.regs.get(operand.name, self.result(operand.name))
        if operand.name not in GPR64 or operand.size == state.word:
            return value
        if operand.high:
            return self.result(operand.name)
        if value.atom is None:
            return Value(None, value.disp & ((1 << 8 * operand.size) - 1))
        whole = value.context in SEGMENTS or isinstance(value.atom, Half) or _loaded_size(value) <= operand.size
        return value if whole else self.result(operand.name)

    def write(self, operand: Operand, value: Value) -> None:
        """Assign `value`."""
        state = self.state
        if isinstance(operand, Mem):
            state.store(self.place(operand), self.size(operand), value)
        elif isinstance(operand, Reg):
            if operand.name == "rsp" and value.atom != state.rsp.atom:
                state.leave_stack()
            full = operand.name not in GPR64 or operand.size == state.word or operand.size == 4
            if not full and not (operand.size == 2 and value.context in SEGMENTS):
                value = self.result(operand.name)
            state.regs[operand.name] = value

    def result(self, name: str) -> Value:
        """What is left in `name` is not followed."""
        return Value(Result(self.insn.address, name))

    def flags_change(self) -> None:
        self.state.regs["rflags"] = self.result("rflags")

    # moves

    def do2_mov(self) -> None:
        self.write(self.ops[0], self.read(self.ops[1]))

    do2_movabs = do2_mov

    def do2_movzx(self) -> None:
        value = self.read(self.ops[1])
        plain = value.atom is None or value.context in SEGMENTS
        self.write(self.ops[0], value if plain else self.result("value"))

    def do2_movsxd(self) -> None:
        value = self.read(self.ops[1])
        self.write(self.ops[0], value if value.atom is None and value.disp < 1 << 31 else self.result("value"))

    def do2_lea(self) -> None:
        target, mem = self.ops[:2]
        if not isinstance(mem, Mem):
            return
        place = self.place(Mem("", mem.base, mem.index, mem.scale, mem.disp, 0))
        if place.segment:  # the base register held the GS base
            self.write(target, self.state.regs["gs_base"].plus(place.disp, self.state.bits))
        else:
            self.write(target, Value(place.atom, place.disp))

    def do2_xchg(self) -> None:
        first, second = self.ops[:2]
        a, b = self.read(first), self.read(second)
        self.write(first, b)
        self.write(second, a)

    def do1_push(self) -> None:
        operand = self.ops[0]
        word = self.state.word
        narrow = self.insn.raw[0] == 0x66 and not (isinstance(operand, Reg) and operand.name in SEGMENTS)
        self.state.push(self.read(operand), 2 if narrow else word)

    def do1_pop(self) -> None:
        operand = self.ops[0]
        narrow = self.insn.raw[0] == 0x66 and not (isinstance(operand, Reg) and operand.name in SEGMENTS)
        value = self.state.pop(2 if narrow else self.state.word, self.insn.address)
        self.write(operand, value)

    def do0_pushal(self) -> None:
        esp = self.state.rsp
        for name in PUSHA_ORDER:
            self.state.push(esp if name == "rsp" else self.state.regs[name], self.state.word)

    def do0_popal(self) -> None:
        for name in reversed(PUSHA_ORDER):
            value = self.state.pop(self.state.word, self.insn.address)
            if name != "rsp":
                self.state.regs[name] = value

    def do0_pushfq(self) -> None:
        self.state.push(self.state.regs["rflags"], self.state.word)

    def do0_popfq(self) -> None:
        self.state.regs["rflags"] = self.state.pop(self.state.word, self.insn.address)

    do0_pushfd, do0_popfd = do0_pushfq, do0_popfq

    def do0_leave(self) -> None:
        self.write(Reg("rsp", self.state.word), self.state.regs["rbp"])
        self.state.regs["rbp"] = self.state.pop(self.state.word, self.insn.address)

    def do1_call(self) -> None:
        self.state.push(Value(None, self.insn.end), self.state.word)

    def do0_ret(self) -> None:
        self.state.pop(self.state.word, self.insn.address)

    def do1_ret(self) -> None:
        self.do0_ret()
        if isinstance(self.ops[0], Imm):
            self.state.regs["rsp"] = self.state.rsp.plus(self.ops[0].value, self.state.bits)

    def do2_movsq(self) -> None:
        self._copy(8)

    def do2_movsd(self) -> None:
        if isinstance(self.ops[0], Mem) and isinstance(self.ops[-1], Mem):
            self._copy(4)
        else:
            self._unknown()

    def _copy(self, size: int) -> None:
        """``movs``: one element, or RCX of them when that is a small constant."""
        state = self.state
        count: int | None = 1
        if self.insn.mnemonic.startswith("rep"):
            count = state.regs["rcx"].constant
            if count is None or count > _MAX_COPY:
                self._unknown()
                return
            state.regs["rcx"] = Value(None, 0)
        source, target = state.regs["rsi"], state.regs["rdi"]
        for _ in range(count or 0):
            state.store(state.place_of(target), size, state.load(state.place_of(source), size, self.insn.address))
            source, target = source.plus(size, state.bits), target.plus(size, state.bits)
        state.regs["rsi"], state.regs["rdi"] = source, target

    # arithmetic

    def do2_add(self) -> None:
        self._shift(1)

    def do2_sub(self) -> None:
        if self.ops[0] == self.ops[1]:
            self.write(self.ops[0], Value(None, 0))
        else:
            self._shift(-1)

    def do1_inc(self) -> None:
        self.write(self.ops[0], self.read(self.ops[0]).plus(1, self.state.bits))
        self.flags_change()

    def do1_dec(self) -> None:
        self.write(self.ops[0], self.read(self.ops[0]).plus(-1, self.state.bits))
        self.flags_change()

    def _shift(self, sign: int) -> None:
        target, source = self.ops[0], self.ops[1]
        number, other = self.read(source).constant, self.read(target)
        if number is not None:
            self.write(target, other.plus(sign * number, self.state.bits))
        elif sign > 0 and other.constant is not None:
            self.write(target, self.read(source).plus(other.constant, self.state.bits))
        else:
            self.write(target, self.result("sum"))
        self.flags_change()

    def do2_xor(self) -> None:
        same = self.ops[0] == self.ops[1]
        self.write(self.ops[0], Value(None, 0) if same else self.result("value"))
        self.flags_change()

    def do2_and(self) -> None:
        """Software may keep bits of its own above a selector; the selector counts. ``and $3`` leaves its RPL."""
        target, mask = self.ops[0], self.read(self.ops[1]).constant
        value = self._peek(target)
        if mask is not None and value.constant is not None:
            self.write(target, Value(None, value.constant & mask))
        elif mask is not None and mask & 0xFFFF == 0xFFFF and value.context in SEGMENTS:
            self.write(target, value)
        elif mask == 3 and value.context == "cs" and isinstance(target, Reg):
            self.state.regs[target.name] = Value(CPL)
        else:
            self.write(target, self.result("memory" if isinstance(target, Mem) else "value"))
        self.flags_change()

    def do2_or(self) -> None:
        a, b = self.read(self.ops[0]), self.read(self.ops[1])
        selector = self._peek(self.ops[0])
        joined = a if isinstance(a.atom, Half) else b
        both = isinstance(a.atom, Half) and isinstance(b.atom, Half) and a.atom.whole == b.atom.whole
        if both and isinstance(joined.atom, Half):
            self.write(self.ops[0], Value(joined.atom.whole))
        elif b.constant is not None and b.constant & 0xFFFF == 0 and selector.context in SEGMENTS:
            self.write(self.ops[0], selector)
        else:
            self.write(self.ops[0], self.result("value"))
        self.flags_change()

    def do2_shl(self) -> None:
        value = self.read(self.ops[0])
        upper = isinstance(value.atom, Half) and value.atom.high and self.ops[1] == Imm(32)
        self.write(self.ops[0], value if upper else self.result("value"))
        self.flags_change()

    def do2_shr(self) -> None:
        value, count = self.read(self.ops[0]), self.ops[-1]
        upper = isinstance(value.atom, (Loaded, Start)) and value.disp == 0 and count == Imm(32)
        if value.atom is None and isinstance(count, Imm):
            self.write(self.ops[0], Value(None, value.disp >> (count.value & 63)))
        elif upper and isinstance(value.atom, (Loaded, Start)):
            self.write(self.ops[0], Value(Half(value.atom, True)))
        else:
            self.write(self.ops[0], self.result("value"))
        self.flags_change()

    def do2_test(self) -> None:
        number, value = self.ops[-1], self._peek(self.ops[0])
        if number == Imm(3) and value.context == "cs":
            self.state.if_zero = "kernel"
        elif isinstance(number, Imm) and 0 <= number.value < 0x80 and value.constant is not None:
            self.state.zero = value.constant & number.value == 0
        self.flags_change()

    def do2_cmp(self) -> None:
        number, value = self.ops[-1], self._peek(self.ops[0])
        if isinstance(number, Imm) and (value.context == "cs" or value.atom == CPL):
            self.state.if_zero = "user" if number.value & 3 else "kernel"
        self.flags_change()

    def _peek(self, operand: Operand) -> Value:
        """The value of which `operand` reads perhaps only a part."""
        if isinstance(operand, Mem):
            place = self.place(operand)
            known = self.state.memory.get((place.segment, place.atom), {}).get(place.disp)
            return known[1] if known else self.result("memory")
        return self.state.regs.get(operand.name, self.result("value")) if isinstance(operand, Reg) else self.result("")

    # system state

    def do0_swapgs(self) -> None:
        regs = self.state.regs
        regs["gs_base"], regs["kernel_gs_base"] = regs["kernel_gs_base"], regs["gs_base"]

    def do1_rdfsbase(self) -> None:
        self.write(self.ops[0], self.state.regs["fs_base"])

    def do1_rdgsbase(self) -> None:
        self.write(self.ops[0], self.state.regs["gs_base"])

    def do1_wrfsbase(self) -> None:
        self.state.regs["fs_base"] = self.read(self.ops[0])

    def do1_wrgsbase(self) -> None:
        self.state.regs["gs_base"] = self.read(self.ops[0])

    def do0_rdmsr(self) -> None:
        regs = self.state.regs
        base = _BASE_OF_MSR.get(regs["rcx"].constant or 0)
        atom = regs[base].atom if base and regs[base].disp == 0 else None
        if atom is None or isinstance(atom, Half):
            regs["rax"], regs["rdx"] = self.result("rax"), self.result("rdx")
        else:
            regs["rax"], regs["rdx"] = Value(Half(atom, False)), Value(Half(atom, True))

    def do0_wrmsr(self) -> None:
        regs = self.state.regs
        base = _BASE_OF_MSR.get(regs["rcx"].constant or 0)
        if base:
            low = regs["rax"]
            whole = low.atom.whole if isinstance(low.atom, Half) and not low.atom.high else low.atom
            if isinstance(whole, Loaded):
                whole = Loaded(whole.place, 8)
            regs[base] = Value(whole, low.disp)

    # SIMD

    def _save_simd(self) -> None:
        mem = self.insn.memory
        if mem:
            self.state.store(self.place(mem), FXSAVE_BYTES, self.state.regs["simd"])

    def _load_simd(self) -> None:
        mem = self.insn.memory
        if mem:
            self.state.regs["simd"] = self.state.load(self.place(mem), FXSAVE_BYTES, self.insn.address)

    def _xmm(self) -> None:
        if len(self.ops) != 2:
            return
        target, source = self.ops
        for operand in self.ops:
            if isinstance(operand, Reg):
                self.state.regs.setdefault(operand.name, Value(Start(operand.name)))
        self.write(target, self.read(source))

    def _unknown(self) -> None:
        """An instruction not modelled: what it writes is not followed."""
        target = self.insn.destination
        if isinstance(target, Mem) and target.size:
            self.state.store(self.place(target), target.size, self.result("memory"))
        _, written = self.code.effects(self.insn)
        for name in written:
            if name in self.state.regs:
                if name == "rsp":
                    self.state.leave_stack()
                self.state.regs[name] = self.result(name)


def _loaded_size(value: Value) -> int:
    return value.atom.size if isinstance(value.atom, Loaded) and value.disp == 0 else 8
