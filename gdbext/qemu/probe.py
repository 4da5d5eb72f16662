"""Building the probe for the QEMU at hand, and the words that load it.

The plugin interface has generations that do not load each other's objects; which one a QEMU has is asked of the QEMU
itself, by offering it an object, and remembered per QEMU binary. Objects are built when first needed and kept in the
user's cache under a name made from everything they were built from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from gdbext.errors import EnvironmentUnusable, UsageError
from gdbext.qemu import cache, child
from gdbext.sources.ring import DEFAULT_ROWS, LOGGED, c_layout

APIS: Final = (4, 5, 6, 7)
"""Plugin API generations the probe can be built for, QEMU 9.2 to 11.1 (older ones cannot read memory)."""

_FLAGS: Final = ("-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread", "-Wall")
_OFFER: Final = ("-machine", "none", "-nodefaults", "-display", "none", "-monitor", "none", "-S")
_WANTS: Final = re.compile(r"this QEMU supports only (?:up to version|a minimum version of) (\d+)")
_LACKS: Final = "undefined symbol: qemu_plugin_"
_NEWER: Final = "use QEMU 9.2 or newer"
_TIMEOUT: Final = 60.0


@dataclass(frozen=True, slots=True)
class ProbeBuild:
    """One built probe. ``path``: the shared object; ``api``: the plugin API it is for; ``qemu``: the program;
    ``told``: whether that one tells plugins what it delivers (10.2 and later)."""

    path: Path
    api: int
    qemu: Path
    told: bool


def build(qemu: Path, cc: str = "cc", accelerator: str = "tcg") -> ProbeBuild:
    """Return the probe for `qemu`, built with the C compiler `cc` unless the cache has it.

    Safe against a second build at the same time. Raises EnvironmentUnusable when there is no probe for this QEMU (no
    plugin support, too old, an accelerator that runs no plugins), no compiler, or no place to put the object, and
    UsageError when `qemu` is something else.
    """
    if accelerator != "tcg":
        raise EnvironmentUnusable(f"the probe needs TCG, not {accelerator}", "plugins see only code QEMU translates")
    kept = cache.made("probe")
    known = kept / f"qemu-{_identity(qemu)}.json"
    taken = _remembered(known)
    if taken is None:
        taken = _taken_by(qemu, kept, cc)
        _replace(known, json.dumps({"qemu": str(qemu), "api": taken[0], "told": taken[1]}).encode())
    api, told = taken
    return ProbeBuild(_object(kept, cc, api), api, qemu, told)


def plugin_args(
    probe: ProbeBuild,
    ring: Path,
    *,
    simd: bool = False,
    halt: bool = False,
    watch: bool = False,
    stores: bool = False,
    every_self: bool = False,
    rows: int = DEFAULT_ROWS,
) -> list[str]:
    """The words that make QEMU load `probe` with its ring at `ring`.

    simd: capture x87, XMM and MXCSR.  halt: begin with vCPUs waiting at exits that are not identical.  watch: see
    stores into watched ranges and tracked variables.  stores: look at all stores of kernel code from the beginning.
    every_self: report irets that only serialise, too.  rows: in each vCPU's ring, a power of two.

    A QEMU that does not tell plugins what it delivers writes that down for the probe, once that wants it, in files
    beside the ring.
    """
    words = [_escape(str(probe.path)), f"ring={_escape(str(ring))}"]
    switches = {"simd": simd, "halt": halt, "watch": watch, "stores": stores, "self": every_self}
    words += [f"{name}=on" for name, wanted in switches.items() if wanted]
    if rows != DEFAULT_ROWS:
        words.append(f"rows={rows}")
    log = [] if probe.told or "%" in str(ring) else ["-d", ",".join((*LOGGED, "tid")), "-D", f"{ring}.log%d"]
    return [*log, "-plugin", ",".join(words)]


def attachable(probe: ProbeBuild, stem: Path, *, simd: bool = False) -> list[str]:
    """The words for a QEMU that a GDB finds the probe of: its ring at `stem`.ring, a monitor beside it."""
    words = plugin_args(probe, stem.with_name(f"{stem.name}.ring"), simd=simd, watch=True)
    return [*words, "-qmp", f"unix:{stem}.qmp,server=on,wait=off"]


def _escape(text: str) -> str:
    return text.replace(",", ",,")  # as QEMU's option parser has it


def _identity(qemu: Path) -> str:
    """Names this very binary: a package upgrade changes size or time."""
    try:
        status = qemu.resolve(strict=True).stat()
    except OSError as error:
        raise EnvironmentUnusable(f"no {qemu} here", error.strerror or "", "install qemu-system-x86") from error
    facts = (str(qemu.resolve()), status.st_size, status.st_mtime_ns, status.st_ino)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _remembered(known: Path) -> tuple[int, bool] | None:
    try:
        taken = json.loads(known.read_bytes())
        api, told = taken["api"], taken["told"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (api, told) if api in APIS and isinstance(told, bool) else None


def _taken_by(qemu: Path, kept: Path, cc: str) -> tuple[int, bool]:
    """Offer `qemu` an object of the newest API; it takes it, or says which it wants. Returns the API, and ``told``."""
    tried: set[int] = set()
    api = APIS[-1]
    while api not in tried:
        tried.add(api)
        said = _offer(qemu, _object(kept, cc, api))
        if "ctxprobe: fits" in said:
            return api, "told of entries" in said
        wanted = _wanted(said)
        if _LACKS in said:  # found out before versions are compared
            raise EnvironmentUnusable(
                f"no probe for {qemu.name}", "its plugins cannot read memory: it is older than 9.2", _NEWER
            )
        if wanted is None:
            _check_is_qemu(qemu)
            raise EnvironmentUnusable(
                f"{qemu.name} loads no plugins", _reason(said), "use one built with plugin support"
            )
        if wanted not in APIS:
            age = "older than 9.2" if wanted < APIS[0] else "newer than this ctxwatch knows"
            todo = _NEWER if wanted < APIS[0] else ""
            raise EnvironmentUnusable(f"no probe for {qemu.name}", f"its plugin API is {wanted}: it is {age}", todo)
        api = wanted
    raise EnvironmentUnusable(f"no probe for {qemu.name}", _reason(said))


def _check_is_qemu(program: Path) -> None:
    """Raises UsageError where `program` is something else."""
    if "QEMU" not in _run(program, "--version"):
        raise UsageError(
            f"{program.name} is no QEMU", todo="name a qemu-system-x86_64; a kernel goes behind its -kernel"
        )


def _offer(qemu: Path, probe: Path) -> str:
    return _run(qemu, *_OFFER, "-plugin", f"{_escape(str(probe))},check=on")


def _run(qemu: Path, *words: str) -> str:
    """What it says to `words`; raises EnvironmentUnusable where it cannot be run."""
    try:
        done = child.run(str(qemu), *words, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        return "it did not answer"
    except OSError as error:
        raise EnvironmentUnusable(f"cannot run {qemu}", error.strerror or str(error)) from error
    return done.stdout + done.stderr


def _wanted(said: str) -> int | None:
    found = _WANTS.search(said)
    return int(found[1]) if found else None


def _reason(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1].partition(": ")[2] or lines[-1] if lines else "it said nothing"


def _object(kept: Path, cc: str, api: int) -> Path:
    """The shared object for `api`, built if it is not there."""
    sources = _sources()
    text = repr((sorted(sources.items()), api, cc, _FLAGS, os.uname().machine))
    path = kept / f"ctxprobe-{api}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if path.exists():
        return path
    command = shlex.split(cc) or ["cc"]
    if shutil.which(command[0]) is None:
        raise EnvironmentUnusable(f"no C compiler ({command[0]})", "the probe is built on demand", "install gcc")
    with tempfile.TemporaryDirectory(prefix="build-", dir=kept) as directory:
        for name, content in sources.items():
            Path(directory, name).write_text(content)
        made = Path(directory, "ctxprobe.so")
        words = [*command, *_FLAGS, f"-DAPI={api}", "-o", str(made), str(Path(directory, "ctxprobe.c"))]
        try:
            done = child.run(*words, timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise EnvironmentUnusable("the C compiler did not end", shlex.join(words)) from None
        if done.returncode != 0 or not made.exists():
            raise EnvironmentUnusable("the probe does not compile", _first_error(done.stderr), shlex.join(command))
        os.replace(made, path)  # whole or not at all, whoever else builds it
    return path


def _first_error(text: str) -> str:
    lines = [line for line in text.splitlines() if "error" in line] or text.splitlines() or ["no message"]
    return lines[0]


def _sources() -> dict[str, str]:
    """File name → text of everything the object is made of; ``layout.h`` is generated."""
    package = resources.files("gdbext.probe")
    texts = {item.name: item.read_text() for item in package.iterdir() if item.name.endswith((".c", ".h"))}
    return texts | {"layout.h": c_layout()}


def _replace(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(name, path)
