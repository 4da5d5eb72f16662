"""The safety mode in real GDBs over real guests: what is refused and how, what stays as it was."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from gdbext.qemu.machine import COUNTED_TIME
from gdbext.recording.reader import Recording
from tests.gdb.conftest import EXTENSION, Boot, bug_free, run_gdb
from tests.gdb.sessions import Mi, Typed, step_until_moved

pytestmark = [pytest.mark.gdb, pytest.mark.guest]

UP = ("tbreak tick if ticks >= 10", "continue")
IN_WINDOW = ("ctx safe override tbreak *(syscall_entry+3)", "continue")
ABBREVIATED = (
    "s", "si", "si 3", "n", "ni", "u", "unt", "adv tick", "fin", "j *$pc", "rsi", "rn", "rs", "stepi&",
    "with print pretty on -- si",
)  # fmt: skip


def pc(gdb: Typed) -> str:
    return gdb.type("output/x $rip")


def window(gdb: Typed) -> str:
    return gdb.type("output $ctx_window($pc)").strip('"')


def place(gdb: Mi) -> str:
    return gdb.answer("-data-evaluate-expression $rip")


def test_a_refusal_says_where_what_and_what_to_do(boot: Boot) -> None:
    live = boot("clean-nrk")
    with Typed(*live.connect, *UP, *IN_WINDOW) as gdb:
        said = gdb.type("stepi 4")
        assert re.match(r"stepi refused: 0x\w+ <syscall_entry\+0x3> is in a window \(syscall-entry\); ctx skip ", said)
        assert "half-switched now: kernel code, user RSP, kernel GS active" in said
        for where in ("under TCG", "under KVM", "in-guest"):
            assert where in said
        gdb.type("set width 100")
        narrow = gdb.type("stepi 4")
        assert max(map(len, narrow.splitlines())) < 100
        assert narrow.split() == said.split()  # no word is cut
        assert "Arrived at" in gdb.type("ctx skip")
        gdb.type(IN_WINDOW[0])
        told = gdb.type(IN_WINDOW[1])
        assert max(map(len, told.splitlines())) < 100
        assert "ctx skip runs past it" in " ".join(told.split())
        gdb.type("set width 0")
        assert "syscall_entry+0x15" in gdb.type("break *(syscall_entry+3)")  # the nearest safe address
        assert "Arrived at" in gdb.type("ctx skip")
        assert "refused: " not in gdb.type("stepi")


def test_abbreviated_repeated_and_wrapped_commands_are_refused_alike(boot: Boot) -> None:
    live = boot("clean-nrk")
    with Typed(*live.connect, *UP, *IN_WINDOW) as gdb:
        before = pc(gdb)
        for command in ABBREVIATED:
            assert " refused: " in gdb.type(command), command
        gdb.type("si")
        assert "stepi refused" in gdb.type("")
        gdb.type("define twice\nstepi\nstepi\nend")
        assert "stepi refused" in gdb.type("twice")
        assert "stepi refused" in gdb.type("python gdb.execute('stepi')")
        assert "stepi refused" in gdb.type("thread apply all stepi")
        for command in ("b", "tb", "hb", "thb", "br"):
            assert "refused and deleted" in gdb.type(f"{command} *(syscall_entry+3)"), command
        for line in ("return", "while 1\nstepi\nend", "| si | cat", "thread apply 1 si", "frame apply 1 si"):
            assert " refused: " in gdb.type(line), line
        assert "refused and deleted" in gdb.type('dprintf *(syscall_entry+3),"%d", tick(0)')
        assert "Dprintf" in gdb.type('dprintf tick,"in tick"')
        gdb.type("delete")
        assert "refused and deleted" in gdb.type("rbreak ^syscall_entry$")
        assert "refused and deleted" in gdb.type("python gdb.Breakpoint('*syscall_entry')")
        assert "No breakpoints" in gdb.type("info breakpoints")
        assert pc(gdb) == before


def test_calls_are_refused_in_a_window_alone_and_the_setting_comes_back(boot: Boot) -> None:
    live = boot("clean-nrk")
    with Typed(*live.connect, *UP, *IN_WINDOW) as gdb:
        for command in ("call tick(0)", "print tick(0)", "output tick(0)", 'printf "%d", tick(0)', "x tick(0)"):
            said = gdb.type(command)
            assert "may-call-functions is off" in said, command
            assert "calls into the guest are refused" in said, command
        for command in ("with may-call-functions on -- print tick(0)", "print tick(0)"):
            assert "may-call-functions is off" in gdb.type(command)
            gdb.type("set may-call-functions on")
        assert re.match(r"\$\d+ = \d+\n$", gdb.type("print ticks"))
        gdb.type("ctx skip")
        assert "is on" in gdb.type("show may-call-functions")


def test_breakpoints_made_before_the_guest_had_a_table_are_refused_at_the_next_stop(boot: Boot) -> None:
    live = boot("clean-nrk")
    with Typed() as gdb:
        for command in ("break *(syscall_entry+3)", "tbreak *syscall_entry", "break tick"):
            gdb.type(live.connect[0])
            assert "reakpoint" in gdb.type(command)
        gdb.type(live.connect[1])
        said = gdb.type("continue")
        assert "breakpoint 1 refused and deleted: " in said
        assert "<syscall_entry+0x3> is in a window" in said
        assert "also deleted: breakpoint 2" in said
        assert len(re.findall(r"^\d+ +breakpoint", gdb.type("info breakpoints"), re.MULTILINE)) == 1
        gdb.type("ctx safe override break *(syscall_entry+3)")
        gdb.type("delete 3")
        assert "Breakpoint 4, " in gdb.type("continue")
        assert "Breakpoint 4, " in gdb.type("continue")


@pytest.mark.parametrize("watched", ["", "ctx watch --via gdbstub"])
def test_commands_of_a_breakpoint_may_run_the_guest(boot: Boot, watched: str) -> None:
    """GDB would run them from within our handlers of the stop, and never come back."""
    live = boot("clean-nrk", "-icount", COUNTED_TIME)
    with Typed(*live.connect, *UP, watched or "echo") as gdb:
        gdb.type("break tick")
        gdb.type("commands\nstepi\nend")
        gdb.type("continue")
        assert gdb.type("output $rip == (unsigned long)&tick") == "0"
        assert gdb.type("info symbol $rip").startswith("tick + ")
        gdb.type("delete")

        gdb.type("set $visits = 0")
        gdb.type("break tick")
        gdb.type("commands\nsilent\nset $visits = $visits + 1\nif $visits < 5\ncontinue\nend\nend")
        gdb.type("continue")
        assert gdb.type("output $visits") == "5"
        gdb.type("delete")

        gdb.type("ctx safe override break *(syscall_entry+3)")
        gdb.type("commands\nstepi\nend")
        assert "stepi refused: " in gdb.type("continue")
        assert window(gdb) == "syscall-entry"
        assert "Arrived at" in gdb.type("ctx skip")
        gdb.type("commands\nctx skip\nend")
        assert "Arrived at" in gdb.type("continue")
        assert window(gdb) == "none"


def test_override_lets_one_command_through_and_is_recorded(boot: Boot) -> None:
    live = boot("clean-nrk")
    with Typed(*live.connect, *UP, *IN_WINDOW) as gdb:
        assert "refused: " not in step_until_moved(gdb, "ctx safe override stepi")
        assert "stepi refused: " in gdb.type("stepi")
        said = gdb.type("ctx safe")
        assert re.search(r"\d\d:\d\d:\d\d  overridden for: stepi", said)
        assert "Temporary breakpoint" in gdb.type('ctx safe override tbreak syscall_entry if $_streq("a b", "c")')
        gdb.type("ctx safe off")
        assert "refused: " not in gdb.type("stepi")
        gdb.type("ctx safe on")
        said = gdb.type("ctx safe")
        assert "switched off" in said
        assert "switched on" in said


def test_switching_and_overriding_are_kept_in_a_recording(boot: Boot, tmp_path: Path) -> None:
    live = boot("clean-nrk")
    path = tmp_path / "session.arrow"
    text = run_gdb(
        *live.connect, "ctx watch", f"ctx record {path}", "tbreak tick if ticks >= 10", "continue",
        "ctx safe override stepi", "ctx safe off", "ctx watch off",
    )  # fmt: skip
    bug_free(text)
    recording = Recording(path)
    assert sum(map(len, recording.batches())) > 0
    assert recording.end is not None
    assert recording.end.end is not None
    assert [note["what"] for note in recording.end.end["safety"]] == ["overridden for: stepi", "switched off"]


def test_the_users_own_hooks_and_settings_stay(boot: Boot) -> None:
    live = boot("clean-nrk")
    with Typed("define hook-stepi\necho mine\\n\nend") as gdb:
        gdb.type("set may-call-functions off")
        for command in (*live.connect, *UP):
            gdb.type(command)
        assert "mine" in gdb.type("stepi")
        for command in IN_WINDOW:
            gdb.type(command)
        said = gdb.type("stepi")
        assert "stepi refused" in said
        assert "mine" not in said
        gdb.type("ctx safe off")
        assert "is off" in gdb.type("show may-call-functions")
        assert gdb.type("show user hook-stepi").split("\n")[1].strip() == "echo mine\\n"


def test_stops_tell_of_windows_and_continue_is_always_allowed(boot: Boot) -> None:
    live = boot("clean-nrk")
    text = run_gdb(*live.connect, *UP, *IN_WINDOW, "tbreak tick", "continue", "detach")
    bug_free(text)
    (line,) = re.findall(r"^ctxwatch: .*$", text, re.MULTILINE)
    assert "<syscall_entry+0x3> is in a window (syscall-entry): kernel code, user RSP, kernel GS active" in line
    assert text.count("tick (") == 2
    live.wait_for("guest: done")


@pytest.mark.parametrize("words", [("-batch",), ()])
def test_a_script_may_end_in_a_window(boot: Boot, tmp_path: Path, words: tuple[str, ...]) -> None:
    """GDB crashes at its end if anything is still to be done then."""
    live = boot("clean-nrk")
    script = tmp_path / "script"
    script.write_text("\n".join((f"source {EXTENSION}", *live.connect, *UP, *IN_WINDOW, "print $pc", "quit")))
    gdb = subprocess.run(
        ["gdb", "-nx", "-q", *words, "-x", str(script)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
    )
    assert "is in a window" in gdb.stdout
    assert gdb.returncode == 0


def test_windows_are_listed_without_a_watch(boot: Boot) -> None:
    live = boot("clean-osdev")
    text = run_gdb(
        *live.connect, *UP, "ctx windows", "print $ctx_window(&syscall_entry)", "print $ctx_window($pc)",
        "ctx windows 1", "ctx windows exit", "ctx windows nosuch", "ctx windows &int80_entry",
    )  # fmt: skip
    bug_free(text)
    for kind in ("syscall-entry", "interrupt-entry", "exit", "shadow", "ist-handler"):
        assert re.search(rf"^\d+\. {kind}  0x\w+-0x\w+  ", text, re.MULTILINE), kind
    assert re.search(r"^     0x\w+  swapgs$", text, re.MULTILINE)
    assert '$1 = "syscall-entry"' in text
    assert '$2 = "none"' in text
    assert "ctx windows: what is 'nosuch'?" in text


def test_the_step_flags_are_shown_and_set_only_when_asked(boot: Boot) -> None:
    live = boot("clean-nrk")
    text = run_gdb(*live.connect, *UP, "ctx safe irqs", "ctx safe irqs on", "ctx safe", "ctx safe irqs off")
    bug_free(text)
    assert re.findall(r"sstep (0x\w)", text) == ["0x7", "0x1", "0x1", "0x7"]


@pytest.mark.parametrize("name", ["clean-smp", "clean-smp-osdev"])
def test_skip_keeps_to_its_vcpu(boot: Boot, name: str) -> None:
    live = boot(name)
    with Typed(*live.connect, "tbreak tick if ticks >= 10", "continue") as gdb:
        for _ in range(10):
            for command in ("ctx safe override tbreak *(syscall_entry+3)", "continue"):
                gdb.type(command)
            thread = gdb.type("output $_thread")
            said = gdb.type("ctx skip")
            assert "Arrived at" in said
            assert "past the syscall-entry window" in said
            assert gdb.type("output $_thread") == thread
            assert gdb.type("output $ctx_window($pc)") == '"none"'


def test_the_machine_interface_is_refused_alike(boot: Boot) -> None:
    live = boot("clean-nrk")
    with Mi(*live.connect, *UP, *IN_WINDOW) as gdb:
        before = place(gdb)
        for command in ("step", "step-instruction", "next", "next-instruction", "until", "finish", "jump *$pc"):
            assert re.search(r"\^error \w+ refused: ", gdb.ask(f"-exec-{command}")), command
        assert "may-call-functions is off" in gdb.ask('-data-evaluate-expression "tick(0)"')
        gdb.ask_until("breakpoint [0-9] refused and deleted", "-break-insert *(syscall_entry+3)")
        assert "'body': []" in gdb.answer("-break-list")
        assert place(gdb) == before
        gdb.answer('-dprintf-insert *(syscall_entry+3) "here"')  # nothing follows it that could be heard of
        gdb.answer("-break-insert -t tick")
        assert "in a window (syscall-entry)" in gdb.ask("-exec-continue")
        assert "dprintf" not in gdb.say("info breakpoints")
        gdb.say("ctx safe override tbreak *(syscall_entry+3)")
        gdb.ask("-exec-continue")
        assert "Arrived at" in gdb.say("ctx skip")


def test_front_ends_are_told_of_no_setting_that_does_not_change(boot: Boot) -> None:
    live = boot("clean-nrk")
    with Mi(*live.connect) as gdb:
        gdb.say("tbreak tick if ticks >= 10")
        said = gdb.ask("-exec-continue") + gdb.say("show user hook-stepi")
    assert "ctxwatch-guard" in said
    assert "cmd-param-changed" not in said


def test_a_gdb_without_a_guest_is_left_alone() -> None:
    text = run_gdb("print 1+1", "break main", "stepi", "show user hook-stepi", "ctx safe", "ctx skip", "ctx windows")
    bug_free(text)
    assert "$1 = 2" in text
    assert "ctxwatch-guard" not in text
    assert "The safety mode is on." in text
    assert text.count("no guest") == 2
