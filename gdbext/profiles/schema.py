"""The schema of a profile file and its messages: file, line, key, what is allowed."""

from __future__ import annotations

import errno
import os
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from gdbext.errors import UsageError
from gdbext.events.row import SLOT_NAMES
from gdbext.profiles.expression import Expression

REGISTERS = SLOT_NAMES

FXSAVE = 512
"""Bytes of the FXSAVE image (Intel SDM vol. 1, 10.5.1)."""

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
"""A profile's name."""

_LONGEST = 1 << 20
"""Characters in a profile file at most: more is something else, or never ends."""

_RULE = re.compile(r"(user|kernel)_mode\(cs\)\s*=>\s*(\w+)\s*(==|!=)\s*(0[xX][0-9a-fA-F]+|\d+)\s*$")


def _expression(text: str) -> str:
    try:
        Expression(text)
    except UsageError as error:
        raise ValueError(f"{error.why}") from None
    return text


def _rule(text: str) -> str:
    if not _RULE.match(text):
        raise ValueError("write user_mode(cs) => NAME == NUMBER, or kernel_mode(cs), or !=")
    return text


ExpressionText = Annotated[str, AfterValidator(_expression)]
RuleText = Annotated[str, AfterValidator(_rule)]
Register = Literal[
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rip", "rflags", "cs", "ss", "ds", "es", "fs", "gs", "fs_base", "gs_base", "error", "fault_rip",
]  # fmt: skip
General = Literal["rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Number = Annotated[int, Field(ge=0, le=0xFFFF_FFFF)]


class CallsTable(_Strict):
    """System calls by number (RAX at the entry): those of 64-bit code by ``syscall``, and those of ia32."""

    native: list[Number] = []
    ia32: list[Number] = []


class PolicyTable(_Strict):
    """``[policy]``: what this kernel does on purpose.

    ``replaces_own``: calls that replace their caller's context (the return of a signal handler).  ``edits_others``:
    calls that may change the context of another thread (a tracer's).  ``names_aborts``: calls whose fourth argument
    is the signature in front of each address at which an interrupted restartable sequence may go on.
    """

    syscall_returns: list[General] = ["rax"]
    user_iopl: bool = False
    vm86: bool = False
    nested_nmi: bool = False
    user_redirects: bool = False
    replaces_own: CallsTable = CallsTable()
    edits_others: CallsTable = CallsTable()
    names_aborts: CallsTable = CallsTable()


class AreaTable(_Strict):
    """``[area]``: one save area; ``slots`` are byte offsets from its start, ``current`` finds the running thread's.

    ``stack``: the area is a part of the handler's stack. It exists only while the handler runs, so stores into it
    are not watched.  ``simd``: where the 512 bytes of FXSAVE lie; what FXSAVE writes of them is not watched.
    """

    size: int = Field(gt=0, le=65536)
    word: Literal[4, 8] = 8
    current: ExpressionText | None = None
    stack: bool = False
    simd: int | None = Field(default=None, ge=0)
    slots: dict[Register, Annotated[int, Field(ge=0)]]

    @model_validator(mode="after")
    def _disjoint(self) -> AreaTable:
        taken: dict[int, str] = {}
        if self.simd is not None:
            if self.simd + FXSAVE > self.size:
                raise ValueError(f"the FXSAVE image at {self.simd} ends beyond the area's {self.size} bytes")
            taken |= dict.fromkeys(range(self.simd, self.simd + FXSAVE), "simd")
        for name, offset in self.slots.items():
            if offset + self.word > self.size:
                raise ValueError(f"slot {name} at {offset} ends beyond the area's {self.size} bytes")
            for byte in range(offset, offset + self.word):
                if byte in taken:
                    raise ValueError(f"slots {taken[byte]} and {name} overlap at byte {byte}")
                taken[byte] = name
        return self


class AreasTable(_Strict):
    """``[areas]``: where all save areas are: fixed addresses, an array, or a linked list with a bound."""

    kind: Literal["fixed", "array", "list"]
    addresses: list[ExpressionText] = []
    base: ExpressionText | None = None
    count: int | None = Field(default=None, gt=0, le=4096)
    stride: int | None = Field(default=None, gt=0)
    head: ExpressionText | None = None
    next: int | None = Field(default=None, ge=0)
    offset: int = 0
    limit: int = Field(default=1024, gt=0, le=4096)

    @model_validator(mode="after")
    def _complete(self) -> AreasTable:
        needed = {"fixed": ("addresses",), "array": ("base", "count", "stride"), "list": ("head", "next")}[self.kind]
        missing = [key for key in needed if not getattr(self, key) and getattr(self, key) != 0]
        if missing:
            raise ValueError(f"kind {self.kind!r} needs {', '.join(missing)}")
        return self


class WritersTable(_Strict):
    """``[writers]``: code that may write a save area: functions by name, or (start, end) expressions."""

    symbols: list[str] = []
    ranges: list[tuple[ExpressionText, ExpressionText]] = []


class TrackedTable(_Strict):
    """``[[tracked]]``: a variable sampled at every entry and exit."""

    name: str = Field(min_length=1)
    address: ExpressionText
    size: Literal[1, 2, 4, 8] = 4
    mask: int | None = Field(default=None, gt=0)
    preserved: bool = False
    rules: list[RuleText] = []


class ProfileFile(_Strict):
    """One profile file."""

    name: str = Field(pattern=f"^{NAME.pattern}$")
    title: str
    extends: str | None = None
    bits: Literal[32, 64] = 64
    sources: list[str] = []
    policy: PolicyTable = PolicyTable()
    area: AreaTable | None = None
    areas: AreasTable | None = None
    writers: WritersTable | None = None
    tracked: list[TrackedTable] = Field(default=[], max_length=4)


def parse(text: str, where: str) -> ProfileFile:
    """Return the profile in the TOML `text`; raises UsageError naming file, line, key and what is allowed."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"profile {where}", f"not TOML: {error}", "correct the file") from None
    if "extends" in data:
        data = _base(data["extends"], where) | data
    try:
        return ProfileFile.model_validate(data)
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_input=False)
        # A key misspelt is also one that is missing.
        first = min(mistakes, key=lambda mistake: mistake["type"] != "extra_forbidden")
        path = [part for part in first["loc"] if part != "[key]"]
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown key; allowed here: {', '.join(_allowed(path))}"
        key = ".".join(str(part) for part in path) or "the file"
        raise UsageError(f"profile {where}:{_line(text, path)}: {key}", message, "see docs/profiles.md") from None


def shipped(name: str) -> str | None:
    """The text of the shipped profile `name`, None if there is none."""
    files = {file.name: file for file in resources.files(__package__).iterdir()}
    file = files.get(f"{name}.toml")
    return file.read_text(encoding="utf-8") if file is not None else None


def _base(name: object, where: str) -> dict[str, Any]:
    """The keys and tables of the shipped profile that another extends."""
    text = shipped(name) if isinstance(name, str) else None
    if text is None:
        raise UsageError(f"profile {where}: extends", f"no shipped profile {name!r}", "see docs/profiles.md")
    return tomllib.loads(text)


def load(path: Path) -> ProfileFile:
    """Return the profile in the file `path`; raises UsageError."""
    try:
        with open(path, encoding="utf-8", opener=_at_once) as file:
            text = file.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise OSError(errno.EFBIG, f"it is longer than {_LONGEST:,} characters")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"profile {path}", why, "name a profile file, or one of the shipped profiles") from None
    return parse(text, str(path))


def _at_once(path: str, flags: int) -> int:
    """Opens a pipe that nobody writes to without waiting for somebody who does."""
    handle = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(handle, True)
    return handle


def rule_parts(text: str) -> tuple[bool, bool, int]:
    """(in user mode, equal, value) of a rule that the schema has accepted."""
    match = _RULE.match(text)
    if match is None:
        raise UsageError(f"rule {text!r}", todo="write user_mode(cs) => NAME == NUMBER")
    return match.group(1) == "user", match.group(3) == "==", int(match.group(4), 0)


def _allowed(path: list[int | str]) -> list[str]:
    """The keys of the table in which the last part of `path` stands."""
    model: type[BaseModel] = ProfileFile
    tables: dict[str, type[BaseModel]] = {
        "policy": PolicyTable,
        "area": AreaTable,
        "areas": AreasTable,
        "writers": WritersTable,
        "tracked": TrackedTable,
    }
    for part in path[:-1]:
        model = tables.get(str(part), model)
    return sorted(model.model_fields)


def _line(text: str, path: list[int | str]) -> int:
    """The line on which the key at `path` stands, as well as lines of TOML tell; 1 if it cannot be found."""
    lines = text.splitlines()
    at, order = 0, 0
    for part in path:
        if isinstance(part, int):
            order = part
            continue
        table = re.compile(rf"\s*\[\[?(?:[\w.-]+\.)?{re.escape(part)}\]\]?\s*$")
        key = re.compile(rf'\s*"?{re.escape(part)}"?\s*[=.]')
        hits = [n for n in range(at, len(lines)) if table.match(lines[n])] or [
            n for n in range(at, len(lines)) if key.match(lines[n])
        ]
        if hits:
            at = hits[min(_order(path, part), len(hits) - 1)]
    return at + 1 if order >= 0 else 1


def _order(path: list[int | str], part: str) -> int:
    """The index that follows `part` in the path: which of several ``[[tables]]`` is meant."""
    after = path[path.index(part) + 1 : path.index(part) + 2]
    return after[0] if after and isinstance(after[0], int) else 0
