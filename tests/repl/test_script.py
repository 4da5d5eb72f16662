"""``ctxwatch repl`` without a terminal: lines on standard input, an exit status, nothing left behind."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gdbext.qemu import guests
from tests.recording.sessions import busy, record
from tests.repl.processes import children_of, wait_until_gone

REPL = [sys.executable, "-c", "import sys; from gdbext.cli.main import main; sys.exit(main())", "repl"]


def repl(*words: str, typed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*REPL, *words], input=typed, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    record(tmp_path / "run.arrow", busy(50))
    return tmp_path / "run.arrow"


def test_a_script_over_a_recording(recording: Path) -> None:
    done = repl(str(recording), typed="goto 7\n\n# a comment\np $rsp\nstatus\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "event 7, CPU" in done.stdout
    assert done.stderr == ""
    assert "\x1b" not in done.stdout, "no colours where there is no terminal"


def test_the_first_refusal_ends_a_script(recording: Path) -> None:
    done = repl(str(recording), typed="goto 7\ncontinue\ngoto 9\n")
    assert done.returncode == 2
    assert done.stderr.startswith("ctxwatch: continue: a recording cannot run")
    assert done.stderr.count("\n") == 1
    assert "event 9" not in done.stdout


def test_quit_ends_a_script(recording: Path) -> None:
    done = repl(str(recording), typed="goto 7\nquit\ngoto 9\n")
    assert done.returncode == 0
    assert "event 9" not in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nrk-rflag",), "no bundled guest is called 'nrk-rflag'; did you mean nrk-rflags"),
        (("missing.arrow",), "missing.arrow cannot be read: No such file or directory"),
        ((300 * "x",), f"no bundled guest is called '{300 * 'x'}'"),
        (("nrk-rflags", "--connect", "localhost:1"), "what to open is not clear; name one"),
        (("nrk-rflags", "--", "qemu-system-x86_64"), "what to open is not clear; name one"),
        (("--kernel", "x"), "--kernel goes with --connect or a QEMU command line"),
        (("--", "qemu-system-none"), "no qemu-system-none here"),
        (("--keys", "ed"), "invalid choice: 'ed'"),
    ],
)
def test_a_wrong_command_line_is_one_line(words: tuple[str, ...], said: str) -> None:
    done = repl(*words, typed="")
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("open ~nobody-here/x", "~nobody-here/x cannot be read: No such file or directory"),
        ("boot --kernel ~nobody-here/x -- qemu-system-none", "no qemu-system-none here"),
    ],
)
def test_a_home_that_nobody_has_is_one_line(line: str, said: str) -> None:
    done = repl(typed=f"{line}\n")
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_wrong_settings_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "ctxwatch").mkdir()
    (tmp_path / "ctxwatch" / "repl.toml").write_text("keys = 'ed'\n")
    done = repl(typed="")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "repl.toml: keys is 'ed'; allowed: emacs, vi" in done.stderr


@pytest.mark.parametrize(("name", "said"), [("empty", "it is empty"), ("text", "cannot be read"), ("", "directory")])
def test_what_is_no_recording(tmp_path: Path, name: str, said: str) -> None:
    if name:
        (tmp_path / name).write_text("" if name == "empty" else "hello " * 100)
    done = repl(f"{tmp_path}/{name}", typed="")
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.startswith("ctxwatch: ")
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


@pytest.mark.gdb
def test_bytes_that_are_no_text_go_to_gdb_as_they_are() -> None:
    typed = b'p sizeof("\xff\xfe")\ndefine two\np sizeof("\xff\xff\xff")\nend\ntwo'
    done = subprocess.run(REPL, input=typed, capture_output=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"$1 = 3\n$2 = 4\n"


@pytest.mark.parametrize(
    ("output", "status", "said"),
    [("| true", 141, ""), ("> /dev/full", 2, "ctxwatch: cannot write the output: No space left on device\n")],
)
def test_an_output_that_takes_no_more_ends_it(recording: Path, output: str, status: int, said: str) -> None:
    line = f"{shlex.join([*REPL, str(recording)])} {output}; exit ${{PIPESTATUS[0]}}"
    typed = "status\n" * 500
    done = subprocess.run(["bash", "-c", line], input=typed, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (status, said)


def test_a_signal_ends_it_whatever_may_still_be_typed(recording: Path) -> None:
    child = subprocess.Popen([*REPL, str(recording)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b"goto 7\ngoto 8")
    child.stdin.flush()
    while not child.stdout.readline().startswith(b"event 7, "):
        pass
    child.terminate()
    assert child.wait(10) == 128 + signal.SIGTERM
    child.communicate()


@pytest.mark.guest
@pytest.mark.gdb
def test_a_script_over_a_guest() -> None:
    guests.build(guests.find("nrk-rflags"))
    typed = "ctx watch --halt\ncontinue\ninfo registers rip\ndefine foo\necho from foo\\n\nend\nfoo\nfindings\n"
    done = repl("nrk-rflags", typed=typed)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CW102 flags-not-restored" in done.stdout
    assert "rip  " in done.stdout, "it waits for where the guest stops"
    assert "from foo" in done.stdout
    assert "look at" in done.stdout


@pytest.mark.guest
@pytest.mark.gdb
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_leaves_nothing_behind(signum: int) -> None:
    guests.build(guests.find("nrk-rflags"))
    child = subprocess.Popen([*REPL, "nrk-rflags"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("continue\n")
    child.stdin.flush()
    while "guest: start" not in child.stdout.readline():
        pass
    children = children_of(child.pid)
    assert len(children) >= 3, "GDB, QEMU and the watchdog of its directory"
    os.kill(child.pid, signum)
    child.communicate(timeout=30)
    assert child.returncode == (-signum if signum == signal.SIGKILL else 128 + signum)
    wait_until_gone(children)
