"""The extension in a GDB without a guest: loading it, its help, what it refuses, what it leaves alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.gdb.conftest import EXTENSION, bug_free, run_gdb

pytestmark = pytest.mark.gdb

COMMANDS = sorted(path.stem for path in (EXTENSION.parent / "gdb" / "commands").glob("*.py") if path.stem != "__init__")


def test_sourcing_prints_nothing_and_twice_is_harmless() -> None:
    assert run_gdb() == ""
    text = run_gdb(f"source {EXTENSION}", "ctx status")
    assert text == "Not watching.\n"


def test_no_setting_changes() -> None:
    def settings(extension: bool) -> list[str]:
        shown = run_gdb("info set", extension=extension).splitlines()
        return [line for line in shown if "$ctx_" not in line and "$_any_caller" not in line]

    before, after = settings(False), settings(True)
    assert len(before) > 100
    assert before == after


def test_the_path_is_only_added_to_at_its_end() -> None:
    text = run_gdb("python import sys; print([p for p in sys.path if 'site-packages' in p or p.endswith('main')])")
    show = "python import sys; print(sys.path)"
    before = run_gdb(show, extension=False).strip()
    after = run_gdb(show).strip()
    assert after.startswith(before.rstrip("]")), text


def test_no_thread_of_numpy_takes_signals() -> None:
    text = run_gdb("python import threading, os; print(len(os.listdir('/proc/self/task')))")
    before = run_gdb("python import os; print(len(os.listdir('/proc/self/task')))", extension=False)
    assert text == before


def test_a_gdb_without_the_packages_says_how_to_get_them(tmp_path: Path) -> None:
    lonely = tmp_path / "gdbext"
    lonely.mkdir()
    copy = lonely / "ctxwatch.py"
    copy.write_text(EXTENSION.read_text("utf-8"), "utf-8")
    text = run_gdb(f"source {copy}", "ctx status", extension=False)
    assert text.startswith("ctxwatch: the Python 3.")
    assert "no numpy and no capstone" in text
    assert "CTXWATCH_VENV" in text
    assert "Traceback" not in text


def test_a_virtual_environment_can_be_named(tmp_path: Path) -> None:
    named = {"CTXWATCH_VENV": str(tmp_path / "nowhere")}
    assert "nowhere" in run_gdb(environment=named)
    named = {"CTXWATCH_VENV": str(EXTENSION.parents[1] / ".venv")}
    assert run_gdb(environment=named) == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_usage_and_example(name: str) -> None:
    text = run_gdb(f"help ctx {name}")
    assert re.search(rf"^Usage: ctx {name}", text, re.MULTILINE)
    assert re.search(rf"^  \(gdb\) .*ctx {name}", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 100


def test_the_prefix_lists_the_commands() -> None:
    for command in ("ctx", "ctx help"):
        text = run_gdb(command)
        for name in COMMANDS:
            assert f"ctx {name} -- " in text
    assert "Usage: ctx watch" in run_gdb("ctx help watch")


def test_a_mistyped_command_is_refused() -> None:
    assert run_gdb("ctx expalin CW102").strip() == "there is no command ctx expalin; did you mean ctx explain?"
    assert run_gdb("ctx zzz").strip() == "there is no command ctx zzz; help ctx lists them"


def test_a_guest_without_windows_is_told_as_that() -> None:
    fake = "windows.run(N(windows=N(machine=lambda: N(windows=[]))), N(which=None))"
    text = run_gdb(f"python from types import SimpleNamespace as N; from gdbext.gdb.commands import windows; {fake}")
    assert text.startswith("No windows: ")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("ctx watch", "no guest: GDB is not connected to one; use target remote HOST:PORT"),
        ("ctx watch off", "nothing is watched; use ctx watch first"),
        ("ctx watch on", "ctx watch: what is 'on'?"),
        ("ctx watch --sideways", "unrecognized arguments: --sideways"),
        ("ctx watch --rules CW999", "no guest"),
        ("ctx findings", "nothing was watched yet; use ctx watch first"),
        ("ctx explain CW999", "there is no finding code 'CW999'"),
        ("print $ctx_parity(1)", "$ctx_parity takes nothing"),
        ("print $ctx_window(1, 2)", "$ctx_window takes one address"),
        ('print $ctx_window("x")', '$ctx_window: "x" is no address'),
        ("ctx profile no-such", "no profile 'no-such'"),
    ],
)
def test_what_cannot_be_done_is_one_line(command: str, says: str) -> None:
    text = run_gdb(command)
    assert says in text
    assert len(text.splitlines()) == 1
    bug_free(text)


def test_functions_answer_without_a_watch() -> None:
    text = run_gdb("print $ctx_parity()", "print $ctx_window(0x1000)")
    assert text == '$1 = "unknown"\n$2 = "none"\n'


def test_explain_prints_the_page() -> None:
    assert "flags-not-restored" in run_gdb("ctx explain cw102")
    assert "CW901" in run_gdb("ctx explain")


def test_a_profile_is_chosen_and_dropped() -> None:
    text = run_gdb("ctx profile", "ctx profile nrk", "ctx profile none")
    assert text.count("No profile") == 2
    assert "save area of 704 bytes" in text
    bug_free(text)


def test_strings_of_a_profile_do_nothing_to_the_terminal(tmp_path: Path) -> None:
    lines = ['name = "mine"', r'title = "a \u001b[31mtitle"', r'sources = ["a \u009bsource"]', "[[tracked]]"]
    lines += ['name = "it"', 'address = "0x10"', "size = 4"]
    (tmp_path / "mine.toml").write_text("\n".join(lines))
    text = run_gdb(f"ctx profile {tmp_path}/mine.toml")
    assert text == ("mine: a \\x1b[31mtitle\n  tracked: it at 0x10, 4 bytes\n  from a \\x9bsource\n")
