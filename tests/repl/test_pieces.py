"""The REPL's parts that need no terminal: states, typed lines, blocks, settings, MI records, facts, addresses."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gdbext.errors import CtxwatchError, UsageError
from gdbext.repl import blocks, config, declare, highlight, mi, peers, topics, typed
from gdbext.repl.connection import Connection, State
from gdbext.repl.facts import Facts, Findings
from gdbext.repl.links import AddressLink
from gdbext.repl.screen import TerminalScreen, wrapped
from gdbext.repl.session import COMMANDS
from gdbext.report.refusal import moves


def test_states_follow_one_another() -> None:
    connection = Connection()
    seen: list[tuple[State, State]] = []
    connection.watch(lambda before, after: seen.append((before, after)))
    for state in (State.CONNECTING, State.STOPPED, State.RUNNING, State.STOPPED, State.DEAD, State.CONNECTING):
        connection.move(state)
    assert seen[-1] == (State.DEAD, State.CONNECTING)
    connection.move(State.IDLE)
    assert not connection.connected


@pytest.mark.parametrize(("before", "after"), [(State.STOPPED, State.CONNECTING), (State.CONNECTING, State.DEAD)])
def test_a_move_there_is_not(before: State, after: State) -> None:
    connection = Connection()
    connection.move(State.CONNECTING)
    connection.move(before)
    assert not connection.can(after)
    with pytest.raises(ValueError, match="no such move"):
        connection.move(after)
    assert connection.state is before


def test_a_state_keeps_its_reason() -> None:
    connection = Connection()
    connection.move(State.STOPPED)
    connection.move(State.DEAD, "QEMU died")
    assert (connection.state, connection.reason) == (State.DEAD, "QEMU died")
    connection.move(State.DEAD, "again")
    assert connection.reason == "QEMU died"


@pytest.mark.parametrize(
    ("line", "sent"),
    [("continue", "continue &"), ("c", "c &"), (" c 5 ", "c 5 &"), ("fg", "fg &"), ("cont", "cont &")]
    + [(same, same) for same in ("condition 1", "commands", "stepi", "continue -a", "call f()", "continue&")],
)
def test_only_continue_goes_to_the_background(line: str, sent: str) -> None:
    assert typed.background(line) == sent


@pytest.mark.parametrize(
    "line", ["c", "continue 3", "si", "stepi 20", "until *0x1", "reverse-stepi", "ctx skip", "fin"]
)
def test_commands_that_run_the_guest(line: str) -> None:
    assert moves(line)


@pytest.mark.parametrize(
    "line", ["condition 1", "info registers", "signals", "find 1", "step-mode", "x/i $pc", "ctx gs"]
)
def test_commands_that_do_not(line: str) -> None:
    assert not moves(line)


@pytest.mark.parametrize(
    ("line", "again"),
    [
        *(("stepi 5", "stepi 5"), ("x/4gx $rsp", "x"), ("list foo", "list"), ("l", "l"), ("up", "up")),
        *((line, "") for line in ("info threads", "delete", "ctx watch", "xyz", "")),
    ],
)
def test_what_an_empty_line_repeats(line: str, again: str) -> None:
    assert typed.again(line) == again


@pytest.mark.parametrize("line", ["kill", "k", "run", "target remote :1234", "tar ext :1"])
def test_what_ends_the_guest(line: str) -> None:
    assert typed.ends_guest(line)
    assert not typed.ends_guest("x/i " + line)


def test_a_shell_does_not_read_our_commands() -> None:
    assert typed.harmless("!cat x") == typed.harmless("shell cat x") == "shell ( cat x ) < /dev/null"
    assert typed.harmless("shellfish") == "shellfish"
    for line in ("shell", "!"):
        with pytest.raises(UsageError, match="shell needs a command here"):
            typed.harmless(line)


def test_the_address_of_a_target_command() -> None:
    assert typed.target("target remote localhost:1234") == "localhost:1234"
    assert typed.target("tar extended-remote /run/s") == "/run/s"
    assert typed.target("target sim") is None


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("info registers", 0),
        ("define foo", 1),
        ("define foo\nend", 0),
        ("define foo\nif 1\nend", 1),
        ("commands 1\nsilent\nend", 0),
        ("python", 1),
        ("python print(1)", 0),
        ("python\nif x:\n  y\nend", 0),
        ("document foo\nif you read this\nend", 0),
        ("define hook-stop\npython\nwhile True:\nend", 1),
        ("end", 0),
        ("ifconfig", 0),
    ],
)
def test_depth_of_blocks(text: str, depth: int) -> None:
    assert blocks.depth(text) == depth


def test_blocks_are_not_torn() -> None:
    text = "break foo\ncommands\nsilent\nend\ncontinue"
    assert list(blocks.split(text)) == ["break foo", "commands\nsilent\nend", "continue"]
    assert list(blocks.split("define x\nstepi")) == ["define x\nstepi"]
    assert list(blocks.split("")) == []


def test_settings(tmp_path: Path) -> None:
    path = tmp_path / "repl.toml"
    assert config.load(path) == config.Config()
    path.write_text('keys = "vi"\nsuggest = false\n')
    assert config.load(path) == config.Config(keys="vi", suggest=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keys = 'ed'", "keys is 'ed'; allowed: emacs, vi"),
        ("keys = 1", "keys is 1; give it a string"),
        ("suggest = 1", "suggest is 1; give it true or false"),
        ("colour = 1", "unknown key colour"),
        ("keys", "cannot read"),
        ("\x00", "cannot read"),
    ],
)
def test_wrong_settings_are_told_with_their_key(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "repl.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        config.load(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("line", "record"),
    [
        ('12^done,value="a\\"b"', mi.Record("result", "done", data={"value": 'a"b'}, token=12)),
        ('*stopped,reason="x"', mi.Record("notify", "stopped", data={"reason": "x"})),
        ('~"text\\n"', mi.Record("console", text="text\n")),
        ("(gdb) ", mi.Record("done")),
        ('^done,x=["', mi.Record("output", text='^done,x=["')),
        ("\x1b[2J", mi.Record("output", text="\x1b[2J")),
    ],
)
def test_records(line: str, record: mi.Record) -> None:
    assert mi.parse(line) == record


def test_what_is_typed_is_quoted() -> None:
    assert mi.console('printf "%s\\n", x') == '-interpreter-exec console "printf \\"%s\\\\n\\", x"'


def test_facts_take_numbers_as_text() -> None:
    facts = Facts()
    facts.take({"events": "100", "cpu": "1", "cpl": "3", "parity": "user", "findings": "2", "pc": "0xff"}, 10.0)
    assert (facts.cpu, facts.cpl, facts.pc, facts.findings, facts.rate) == (1, 3, 255, 2, 0.0)
    facts.take({"events": "600", "watching": "armed"}, 12.0)
    assert facts.rate == 250.0
    assert facts.cpu is None
    facts.take({"events": "0", "cpu": "junk"}, 13.0)
    assert (facts.rate, facts.cpu) == (0.0, None)
    facts.lost()
    assert facts.watching == "no"


def finding(event: int, count: int = 1) -> dict[str, Any]:
    return {"code": "CW102", "name": "n", "event": str(event), "count": str(count), "lines": ["l"], "picture": "p"}


def test_findings_of_a_watch_that_is_over_are_kept_and_told_once() -> None:
    findings = Findings()
    findings.take({"watch": "1", "findings": [finding(1)]})
    findings.take({"watch": "1", "findings": [finding(1, 5), finding(9)]})
    assert [(one.event, one.count) for one in findings.all()] == [(1, 5), (9, 1)]
    findings.take({"watch": "2", "findings": [finding(1)]})
    assert [one.event for one in findings.all()] == [1, 9, 1]
    assert [one.event for one in findings.current] == [1]
    findings.take({"watch": "2", "findings": [finding(1)]})
    assert len(findings) == 3
    findings.another_gdb()
    assert findings.current == []
    findings.take({"watch": "1", "findings": [finding(4)]})
    assert [one.event for one in findings.all()] == [1, 9, 1, 4]


@pytest.mark.parametrize(
    ("typed_address", "address"),
    [
        ("localhost:1234", "localhost:1234"),
        (":1234", "localhost:1234"),
        ("1234", "localhost:1234"),
        ("[::1]:9", "[::1]:9"),
    ],
)
def test_addresses(typed_address: str, address: str) -> None:
    link = AddressLink(typed_address)
    assert link._endpoint.address == address
    assert not link.ours


def test_a_file_is_no_socket(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(CtxwatchError, match="is no socket"):
        AddressLink(str(path))


UNIX = """Num       RefCount Protocol Flags    Type St Inode Path
a: 00000003 00000000 00000000 0001 03 333144 /run/busy
b: 00000002 00000000 00010000 0001 01 333093 /run/busy
b: 00000002 00000000 00010000 0001 01 333094 /run/free
c: 00000003 00000000 00000000 0001 03 333145
"""
TCP = """  sl  local_address rem_address   st tx_queue
   0: 0100007F:04D2 00000000:0000 0A 00000000:00000000
   2: 0100007F:04D2 0100007F:E5B8 01 00000000:00000000
   3: 0100007F:E5B8 0100007F:04D2 01 00000000:00000000
   4: 0100007F:04D3 00000000:0000 0A 00000000:00000000
"""


@pytest.mark.parametrize(
    ("address", "taken"),
    [
        *(("/run/busy", True), ("/run/free", False), ("/run/none", False), ("localhost:1234", True)),
        *(("[::1]:1234", True), ("localhost:1235", False), ("localhost:58808", False), ("elsewhere:1234", False)),
    ],
)
def test_a_gdbstub_that_has_a_client(tmp_path: Path, address: str, taken: bool) -> None:
    (tmp_path / "unix").write_text(UNIX)
    (tmp_path / "tcp").write_text(TCP)
    assert peers.taken(address, tmp_path) is taken
    assert peers.taken(address, tmp_path / "nothing") is False


@pytest.mark.parametrize(
    "line",
    [
        "=> 0xffffffff801029f5 <restore_context+134>:\tiretq",
        "   0x401402 <calls_main+5122>:\tcmp    0xfebff(%rip),%rbx        # 0x500008",
        "   0x0000000000401402 <+12>:\t48 89 c3\tmov    %rax,%rbx",
        "0xfff0:\tadd    %al,(%rax)",
        "   0x10:\t(bad)",
        "   0x1 <f>:\tmov rax, qword ptr gs:[rdi + 8]",
    ],
)
def test_instructions_are_coloured_and_not_changed(line: str) -> None:
    coloured = highlight.instruction(line)
    assert coloured is not None
    assert "".join(fragment[1] for fragment in coloured) == line
    assert any(fragment[0].startswith("class:pygments") for fragment in coloured)


@pytest.mark.parametrize("line", ["0x7ffe10:\t0x0000000000000001\t0x00", "rax  0x0  0", "", "=> no"])
def test_other_lines_are_not(line: str) -> None:
    assert highlight.instruction(line) is None


def test_every_command_has_help_with_an_example() -> None:
    commands = declare.discover(COMMANDS)
    assert {"help", "quit", "boot", "connect", "reconnect", "open", "goto", "next-finding", "prev"} <= commands.keys()
    for command in commands.values():
        assert command.summary.endswith(".")
        assert command.topic in topics.TOPICS
        text = command.help()
        assert "Example:" in text
        for line in text.splitlines():
            assert len(line) < 100
        first = command.example.strip().splitlines()[0].split(" ", 1)
        assert first[0] in (command.name, *command.aliases)
        command.parse(first[1] if len(first) > 1 else "")


def test_every_topic_has_a_page() -> None:
    commands = declare.discover(COMMANDS)
    for name in topics.TOPICS:
        assert name in topics.index()
        assert topics.page(name, commands)


def test_a_line_wider_than_the_terminal_is_broken_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wrapped("a " * 40, 20) == "a " * 40, "no terminal"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert wrapped("short enough", 12) == "short enough"
    assert wrapped("stepi: a recording cannot run; next-finding moves in it", 40).split("\n") == [
        "stepi: a recording cannot run;",
        "  next-finding moves in it",
    ]
    assert wrapped("  prev-finding  Go back to the event before this one", 40).split("\n") == [
        "  prev-finding  Go back to the event",
        "                before this one",
    ]
    assert wrapped("x" * 25, 10).split("\n") == ["x" * 10, "  " + "x" * 8, "  " + "x" * 7]
    assert all(len(line) <= 10 for line in wrapped("a" * 30 + "  b", 10).split("\n"))


def test_what_gdb_says_is_broken_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    async def gathered() -> str:
        screen = TerminalScreen()
        screen.gdb("ctxwatch: CW102 " + "flags-not-restored " * 9 + "\n" + "word " * 40 + "\n")
        return "".join(text for _, text, *_ in screen._pending)

    lines = asyncio.run(gathered()).splitlines()
    assert len(lines) > 4
    assert max(map(len, lines)) <= 80
    assert all(line.split()[-1] in ("flags-not-restored", "word") for line in lines)


def test_what_goes_on_stands_below_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert wrapped("  look at      whether the entry path stores the RFLAGS", 40).split("\n") == [
        "  look at      whether the entry path",
        "               stores the RFLAGS",
    ]
    assert wrapped("   a handler on IST stack 1: entered again before its iret", 40).split("\n") == [
        "   a handler on IST stack 1: entered",
        "     again before its iret",
    ]


def test_a_long_instruction_is_broken_between_words_and_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    async def gathered() -> list[tuple[str, str]]:
        screen = TerminalScreen()
        name = "restore_context_of_the_interrupted"
        screen.gdb(f"   0xffffffff8010342d <{name}+129>:\tje     0xffffffff80103432 <{name}+134>\n")
        return [(part[0], part[1]) for part in screen._pending]

    shown = asyncio.run(gathered())
    lines = "".join(text for _, text in shown).splitlines()
    assert len(lines) == 2
    assert lines[1].strip() == "0xffffffff80103432 <restore_context_of_the_interrupted+134>"
    assert ("class:address", "0xffffffff8010342d") in shown
