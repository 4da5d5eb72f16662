"""``ctxwatch run`` where something is missing or wrong: one line, the right status, nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CTXWATCH = [sys.executable, "-c", "import sys; from gdbext.cli.main import main; sys.exit(main())"]
LONG = 300 * "x"
"""Longer than a file's name can be."""
EMPTY = ["qemu-system-x86_64", "-display", "none", "-m", "16M", "-net", "none"]
TOOLS = ("sh", "make", "gcc", "as", "ld", "objcopy", "mkdir", "rm", "cc", "echo", "tr", "basename", "dirname")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A short-named directory that everything temporary of the child goes to."""
    with tempfile.TemporaryDirectory(prefix="t") as name:
        yield Path(name)


def programs(directory: Path, *names: str) -> Path:
    """A PATH of `names` alone, besides what building a guest needs."""
    path = directory / "bin"
    path.mkdir()
    for name in (*TOOLS, *names):
        found = shutil.which(name)
        assert found is not None, name
        (path / name).symlink_to(found)
    return path


def run(*words: str, seconds: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CTXWATCH, "run", *words],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, env=os.environ | environment,
        check=False,
    )  # fmt: skip


def refused(done: subprocess.CompletedProcess[str], status: int, said: str) -> None:
    lines = [line for line in done.stderr.splitlines() if line.startswith("ctxwatch: ")]
    assert done.returncode == status, done.stderr
    assert said in lines[-1], done.stderr
    assert "Traceback" not in done.stderr
    assert len(lines) == len(done.stderr.splitlines()), done.stderr


def children(marker: str) -> list[str]:
    """Command lines of the running processes that hold `marker`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if marker in line and str(os.getpid()) != entry.parent.name:
            found.append(line)
    return found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to run"),
        (["clean-nrk", "--", "qemu-system-x86_64"], "both a guest and a QEMU command line"),
        (["nonesuch"], "no bundled guest is called 'nonesuch'"),
        (["clean-nrk", "--via", "magic"], "invalid choice: 'magic'"),
        (["clean-nrk", "--timeout", "-3"], "--timeout -3 is not a time"),
        (["clean-nrk", "--timeout", "soon"], "invalid float value: 'soon'"),
        (["clean-nrk", "--timeout", "nan"], "--timeout nan is not a time"),
        (["clean-nrk", "--max-findings", "-1"], "--max-findings -1"),
        (["clean-nrk", "--rules", "CW999"], "no finding code 'CW999'"),
        (["clean-nrk", "--rules", ","], "no finding code is named"),
        (["clean-nrk", "--rules", ""], "no finding code is named"),
        (["clean-nrk", "--profile", "nonesuch"], "no profile 'nonesuch'"),
        (["clean-nrk", "--kernel", "/etc/passwd"], "/etc/passwd is not a kernel that can be read"),
        (["clean-nrk", "--kernel", "/nonexistent"], "cannot read the kernel /nonexistent"),
        (["clean-nrk", "--kernel", "/dev/zero"], "cannot read the kernel /dev/zero: it is no regular file"),
        (["clean-nrk", "--profile", "/dev/zero"], "profile /dev/zero: it is longer than"),
        (["clean-nrk", "--profile", "/nonexistent/x"], "profile /nonexistent/x: No such file or directory"),
        (["clean-nrk", "--profile", LONG], f"no profile '{LONG}'"),
        (["clean-nrk", "--profile", f"/{LONG}"], f"profile /{LONG}: File name too long"),
        (["clean-nrk", "--json", LONG], f"cannot write {LONG}: File name too long"),
        (["clean-nrk", "--record", LONG], f"cannot record to {LONG}: File name too long"),
        ([LONG], f"no bundled guest is called '{LONG}'"),
        (["clean-nrk", "--json", "/nonexistent/x"], "cannot write /nonexistent/x"),
        (["clean-nrk", "--record", "/nonexistent/x"], "/nonexistent/x"),
        (["--stripped", "--", *EMPTY], "--stripped is for bundled guests"),
        (["--", "qemu-system-nonesuch"], "no qemu-system-nonesuch here"),
        (["--via", "gdbstub", "--", *EMPTY, "-s"], "opens a gdbstub"),
        (["--via", "gdbstub", "--simd", "--", *EMPTY], "--simd needs the probe"),
        (["--via", "gdbstub", "--stores", "all", "--", *EMPTY], "--stores all needs the probe"),
        (["--via", "probe", "--", *EMPTY, "-enable-kvm"], "the probe needs TCG"),
        (["--", *EMPTY, "-daemonize"], "-daemonize"),
        (["--until", "x", "--", *EMPTY, "-serial", "null"], "leads elsewhere"),
        (["clean-nrk", "--hold"], "--hold keeps a guest that --halt has stopped"),
    ],
)
def test_wrong_usage(words: list[str], said: str) -> None:
    refused(run(*words), 2, said)


@pytest.mark.parametrize("option", ["--json", "--record"])
@pytest.mark.parametrize(
    ("how", "called"), [("--kernel", "kernel"), ("-kernel", "guest's file"), ("-cdrom", "guest's file")]
)
def test_the_kernel_is_not_written_over(scratch: Path, option: str, how: str, called: str) -> None:
    kernel = scratch / "kernel"
    kernel.write_text("a kernel")
    ours, theirs = ((how, str(kernel)), ()) if how == "--kernel" else ((), (how, str(kernel)))
    done = run(*ours, option, str(kernel), "--", *EMPTY, *theirs)
    refused(done, 2, f"cannot write {kernel}: it is the {called} itself; choose another name")
    assert kernel.read_text() == "a kernel"
    assert [path.name for path in scratch.iterdir()] == ["kernel"]


def test_no_place_for_the_cache(scratch: Path) -> None:
    (scratch / "file").touch()
    done = run("clean-nrk", XDG_CACHE_HOME=str(scratch / "file"))
    refused(done, 2, f"cannot make {scratch}/file/ctxwatch/guests: Not a directory; set XDG_CACHE_HOME")


def test_no_qemu(scratch: Path) -> None:
    refused(run("clean-nrk", PATH=str(programs(scratch))), 2, "no qemu-system-x86_64 here")


def test_no_gdb(scratch: Path) -> None:
    path = programs(scratch, "qemu-system-x86_64")
    refused(run("clean-nrk", "--via", "gdbstub", PATH=str(path)), 2, "there is no gdb")


NO_PYTHON = r"""#!/bin/sh
error='^error,msg="Scripting in the \\"Python\\" language is not supported in this copy of GDB."'
echo '(gdb) '
while read -r line; do
    case $line in
    *"python None"*) echo "${line%%-*}$error" ;;
    *) echo "${line%%-*}^done" ;;
    esac
    echo '(gdb) '
done
"""
"""What a GDB built without Python answers."""


def test_gdb_without_python(scratch: Path) -> None:
    path = programs(scratch, "qemu-system-x86_64")
    (path / "gdb").write_text(NO_PYTHON)
    (path / "gdb").chmod(0o755)
    done = run("clean-nrk", "--via", "gdbstub", PATH=str(path))
    refused(done, 2, "this GDB has no Python: Scripting in the")


def test_gdb_without_the_packages(scratch: Path) -> None:
    done = run("clean-nrk", "--via", "gdbstub", CTXWATCH_VENV=str(scratch))
    refused(done, 2, f"(looked in {scratch}); run ")
    assert "Undefined command" not in done.stderr


@pytest.mark.guest
@pytest.mark.parametrize("via", ["probe", "gdbstub"])
def test_a_guest_that_dies_at_once(via: str, scratch: Path) -> None:
    """A kernel whose first instruction has no IDT to fault into."""
    source, kernel = scratch / "k.S", scratch / "k.elf"
    source.write_text(
        '.section .note.Xen, "a", @note\n.long 4, 4, 18\n.asciz "Xen"\n.long _start\n'
        ".text\n.code32\n.global _start\n_start: ud2\n"
    )
    build = [
        "gcc",
        "-m32",
        "-nostdlib",
        "-static",
        "-Wl,-Ttext=0x100000,--build-id=none",
        "-o",
        str(kernel),
        str(source),
    ]
    subprocess.run(build, check=True)
    done = run("--via", via, "--timeout", "20", "--", *EMPTY, "-kernel", str(kernel))
    assert done.returncode == 1, done.stderr
    assert "CW901" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.guest
def test_qemu_that_refuses_its_options() -> None:
    refused(run("--", *EMPTY, "-bogus"), 3, "QEMU did not start: -bogus: invalid option")
    refused(run("--", *EMPTY, "-m", "10Z"), 3, "QEMU did not start: -m 10Z: Parameter 'size' expects")


@pytest.mark.guest
def test_text_that_never_comes() -> None:
    refused(run("clean-nrk", "--until", "nevermore", "--timeout", "2"), 3, "the guest never printed 'nevermore'")


@pytest.mark.guest
@pytest.mark.parametrize("via", ["probe", "gdbstub"])
@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_signals_leave_nothing(via: str, signum: int, status: int, scratch: Path) -> None:
    marker = f"ctxwatch-test-{os.getpid()}-{via}-{signum}"
    words = ["--via", via, "--", *EMPTY, "-name", marker]
    child = subprocess.Popen(
        [*CTXWATCH, "run", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"TMPDIR": str(scratch)},
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while not any(line.startswith("/usr") for line in children(marker)) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    child.send_signal(signum)
    _, errors = child.communicate(timeout=20)
    assert child.returncode == status, errors
    assert "Traceback" not in errors
    deadline = time.monotonic() + 5
    while children(marker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children(marker) == []


@pytest.mark.guest
@pytest.mark.parametrize("via", ["probe", "gdbstub"])
def test_qemu_killed_meanwhile(via: str) -> None:
    marker = f"ctxwatch-test-{os.getpid()}-killed-{via}"
    child = subprocess.Popen(
        [*CTXWATCH, "run", "--via", via, "--", *EMPTY, "-name", marker],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    qemu: list[int] = []
    while not qemu and time.monotonic() < deadline:
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0].endswith(b"qemu-system-x86_64") and marker.encode() in words:
                qemu.append(int(entry.parent.name))
    time.sleep(1.5)
    os.kill(qemu[0], signal.SIGKILL)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 3, errors
    assert errors.splitlines()[-1].startswith("ctxwatch: QEMU was killed by signal 9")
    assert "Traceback" not in errors
