"""The command as a person meets it: help, mistakes, signals, closed pipes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gdbext.cli import command as declarations
from gdbext.cli import running
from gdbext.cli.main import main
from gdbext.errors import GuestFailed
from gdbext.qemu import guests
from gdbext.rules.codes import CODES

CTXWATCH = [sys.executable, "-c", "import sys; from gdbext.cli.main import main; sys.exit(main())"]


def ctxwatch(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CTXWATCH, *words], capture_output=True, text=True, timeout=60, env=os.environ | environment, check=False
    )


def one_line(text: str) -> str:
    assert text.startswith("ctxwatch: ")
    assert text.count("\n") == 1
    assert text.endswith("\n")
    return text


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    for command in declarations.discover():
        assert command.name in out
        assert command.summary in out


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from gdbext.cli.main import main; main([]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"numpy", "pyarrow", "pwnlib", "rich", "capstone", "qemu.qmp", "pygdbmi", "prompt_toolkit"}


@pytest.mark.parametrize("command", declarations.discover(), ids=lambda command: command.name)
def test_every_command_has_help_with_an_example(command: declarations.Command) -> None:
    done = ctxwatch(command.name, "--help")
    assert done.returncode == 0
    assert f"ctxwatch {command.name}" in done.stdout
    assert "example:" in done.stdout
    assert ("[-- QEMU ...]" in done.stdout) == command.qemu
    assert any(line.startswith(f"ctxwatch {command.name}") for line in command.example.splitlines())
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gests"], "there is no command 'gests'; did you mean guests?"),
        (["frobnicate"], "there is no command 'frobnicate'; see `ctxwatch --help`"),
        (["guests", "--jsn"], "unknown argument '--jsn'; see `ctxwatch guests --help`"),
        (["guests", "--js"], "unknown argument '--js'"),
        (["--versoin"], "unknown argument '--versoin'; see `ctxwatch --help`"),
        (["--", "run", "clean-nrk"], "no command stands in front of '--'; see `ctxwatch --help`"),
        (["run", __file__], f"-- qemu-system-x86_64 -kernel {__file__}"),
        (["run", "qemu-system-x86_64", "-kernel", "k"], "see `ctxwatch run --help`; a QEMU command line goes after --"),
        (["qemu-args", "--name", "../x"], "--name ../x names no file"),
        (["qemu-args", "--name", "a b"], "--name 'a b' is no plain name: a shell would split it"),
        (["qemu-args", "--name", "a,b"], "is no plain name"),
        (["qemu-args", "--name", 200 * "a"], "is too long for a socket's path; choose a shorter one"),
        (["explain", "CW999"], "there is no finding code 'CW999'"),
        (["explain", "flag-not-restored"], "did you mean flags-not-restored?"),
        (["qemu-args", "--qemu", "qemu-system-none"], "no qemu-system-none here; name a qemu-system-x86_64"),
        (["explain", "CW1\x1b[31m"], r"'CW1\x1b[31m'"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert said in one_line(captured.err)
    assert captured.out == ""


def test_an_error_of_ours_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> list[str]:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(guests, "names", broken)
    assert main(["guests"]) == 2
    assert "ctxwatch failed: ZeroDivisionError: a bug" in one_line(capsys.readouterr().err)


def test_the_status_is_the_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def failed() -> list[str]:
        raise GuestFailed("it died", "nobody knows", "look")

    monkeypatch.setattr(guests, "names", failed)
    assert main(["guests"]) == 3
    assert capsys.readouterr().err == "ctxwatch: it died: nobody knows; look\n"


def test_a_demo_that_finds_nothing_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(running, "run", lambda asked: 0)
    assert main(["demo"]) == 3
    assert one_line(capsys.readouterr().err).startswith("ctxwatch: the demo found nothing: ")


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CTXWATCH_TRACEBACK", "1")
    assert main(["explain", "CW999"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_end_it_quietly(signum: int, status: int) -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background
        "from gdbext.cli.main import main\n"
        "from gdbext.qemu import guests\n"
        "def wait():\n    print('ready', flush=True); time.sleep(30)\n"
        "guests.names = wait\n"
        "sys.exit(main(['guests']))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signum)
    _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (status, "")


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What bash makes of `line`, in which ``ctxwatch`` is the command."""
    command = f'ctxwatch() {{ {shlex.join(CTXWATCH)} "$@"; }}; {line}'
    environment = os.environ | environment
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["guests", "explain", "explain CW102", "--help", "run --help", "--version"])
def test_a_reader_that_leaves_is_no_error(words: str, unbuffered: str) -> None:
    done = shell(f"ctxwatch {words} | true; exit ${{PIPESTATUS[0]}}", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_closed_streams_are_no_error() -> None:
    done = shell("ctxwatch explain CW102 <&- >&-; echo $?; ctxwatch explain 2>&- | grep CW102; ctxwatch x 2>&-")
    assert done.stdout.splitlines() == ["0", "CW102  flags-not-restored     RFLAGS differ at resume (RF ignored)"]
    assert (done.returncode, done.stderr) == (2, "")


def test_a_terminal_that_knows_only_ascii_is_no_error() -> None:
    done = shell("ctxwatch explain CW102", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u2026" in done.stdout


def test_guests_as_json() -> None:
    document = json.loads(ctxwatch("guests", "--json").stdout)
    rows = {row["name"]: row for row in document["guests"]}
    assert document["schema"] == "ctxwatch.guests/1"
    assert rows["nrk-rflags"]["codes"] == ["CW102"]
    assert rows["clean-nrk"]["codes"] == []


def test_guests_table_names_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guests"]) == 0
    out = capsys.readouterr().out
    for name in guests.names():
        assert name in out


@pytest.mark.parametrize("code", list(CODES))
def test_explain_knows_every_code(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", code]) == 0
    out = capsys.readouterr().out
    assert code in out
    assert CODES[code].name in out


def test_explain_takes_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "Flags-not-restored"]) == 0
    assert "CW102" in capsys.readouterr().out


def test_explain_without_a_code_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CODES)


@pytest.mark.parametrize("columns", ["0", "1"])
def test_no_width_hides_anything(columns: str) -> None:
    assert "CW102 flags-not-" in ctxwatch("explain", "CW102", COLUMNS=columns).stdout


def test_no_colour_when_asked() -> None:
    done = ctxwatch("explain", "CW102", NO_COLOR="1", FORCE_COLOR="1")
    assert "\x1b[3" not in done.stdout


def test_missing_configs_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(guests, "CONFIGS", tmp_path / "none")
    assert main(["guests"]) == 2


LOADING = """
import sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "gdbext.cli.main":
            print(sorted(known for known in sys.modules if known.startswith("gdbext")))
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from gdbext.cli.entry import run
sys.exit(run())
"""


def test_a_ctrl_c_while_the_command_is_loaded_ends_it_without_a_word() -> None:
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "")
    assert done.stdout == "['gdbext', 'gdbext.cli', 'gdbext.cli.entry']\n"


@pytest.mark.guest
def test_a_guest_that_does_nothing_is_not_called_checked() -> None:
    done = ctxwatch("run", "--timeout", "1", "--", "qemu-system-x86_64", "-display", "none", "-net", "none")
    assert done.returncode == 0
    assert one_line(done.stderr) == "ctxwatch: no interrupt, exception or system call was seen: nothing was checked\n"


@pytest.mark.parametrize("words", [["guests"], ["guests", "--json"]])
def test_an_output_that_is_full_is_one_line(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*CTXWATCH, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "No space left on device" in one_line(done.stderr)
