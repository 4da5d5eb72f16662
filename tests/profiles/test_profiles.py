"""Profiles: what is shipped loads, what is wrong is told with file, line, key and remedy, walks are bounded."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdbext.errors import CtxwatchError, UsageError
from gdbext.profiles.expression import Expression, Scope
from gdbext.profiles.profile import Profile, find, shipped_names
from gdbext.profiles.schema import parse

HEAD = 'name = "mine"\ntitle = "a kernel"\n'


SHIPPED = ["generic", "linux-amd64", "linux-amd64-nohz_full", "linux-i386", "nrk", "sel4-ia32", "sel4-x86_64"]


def scope(memory: dict[int, int] | None = None, word: int = 8) -> Scope:
    words = memory or {}

    def read(address: int, length: int) -> bytes:
        if address not in words:
            raise OSError(f"{address:#x} is unmapped")
        return words[address].to_bytes(length, "little")

    return Scope({"gs_base": 0x1000, "rsp": 0x8000}, {"current": 0x2000}.get, read, word)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profiles_load_and_cite(name: str) -> None:
    profile = find(name)
    assert profile.name == name
    assert profile.data.sources
    profile.policy()


def test_all_shipped_are_tested() -> None:
    assert shipped_names() == SHIPPED


def test_a_profile_extends_a_shipped_one() -> None:
    base, more = find("linux-amd64"), find("linux-amd64-nohz_full")
    assert more.layout == base.layout
    assert more.policy().replaces_own == base.policy().replaces_own
    assert [variable.name for variable in more.policy().tracked] == ["context"]
    with pytest.raises(UsageError, match="extends: no shipped profile 'nosuch'"):
        parse('name = "mine"\ntitle = ""\nextends = "nosuch"\n', "mine.toml")


def test_expressions() -> None:
    memory = {0x1008: 0x5000, 0x2000: 0x6000, 0x6010: 7}
    for text, value in (
        ("[gs:8]", 0x5000),
        ("current + 0x10", 0x2010),
        ("[[current] + 16]", 7),
        ("rsp - 2*8", 0x7FF0),
        ("(1 + 2) * 3", 9),
        ("0 - 1", 2**64 - 1),
    ):
        assert Expression(text).evaluate(scope(memory)) == value


def test_numbers_are_decimal_or_hexadecimal() -> None:
    nothing = Scope({}, lambda _: 0, lambda _, length: bytes(length))
    assert [Expression(text).evaluate(nothing) for text in ("010", "0X1f", "0x10 - 6")] == [10, 31, 10]


def test_how_far_below_a_pointer() -> None:
    below = [Expression(text).below_pointer for text in ("[gs:8] - 0xa8", "[cpu + 4] - 168", "[gs:8]", "rsp - 8", "8")]
    assert below == [168, 168, 0, 0, 0]


@pytest.mark.parametrize("text", ["", "[gs:8", "1 +", "a b", "%rax", "[" * 40 + "1" + "]" * 40])
def test_bad_expressions_are_told(text: str) -> None:
    with pytest.raises(UsageError, match="expression"):
        Expression(text)


@given(st.text(max_size=40))
def test_no_expression_text_does_worse_than_an_error(text: str) -> None:
    with contextlib.suppress(CtxwatchError, OSError):
        Expression(text).evaluate(scope())


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("colour = 1\n", 3, "unknown key; allowed here: area, areas"),
        ("[areas]\nknid = 'fixed'\n", 4, "areas.knid: unknown key; allowed here: addresses, base"),
        ("[area]\nsize = 64\nword = 8\n[area.slots]\nrax = 0\nrbx = 4\n", 3, "slots rax and rbx overlap at byte 4"),
        ("[area]\nsize = 64\n[area.slots]\nrax = 60\n", 3, "ends beyond"),
        ("[area]\nsize = 64\n[area.slots]\nzax = 0\n", 6, "Input should be 'rax'"),
        ("[area]\nsize = 64\ncurrent = '[gs:'\n[area.slots]\n", 5, "it ends too early"),
        ("[policy]\nvm86 = 'yes please'\n", 4, "boolean"),
        ("[areas]\nkind = 'list'\nhead = 'x'\n", 3, "needs next"),
        ("[[tracked]]\nname='a'\naddress='1'\n[[tracked]]\nname='b'\naddress='1'\nsize=3\n", 9, "1, 2, 4 or 8"),
        ("[[tracked]]\nname='a'\naddress='1'\nrules=['in_user == 1']\n", 6, "user_mode(cs) =>"),
    ],
)
def test_mistakes_are_told_with_line_and_remedy(text: str, line: int, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(HEAD + text, "mine.toml")
    assert f"mine.toml:{line}:" in str(caught.value)
    assert says in str(caught.value)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="shipped are generic"):
        find("nothing-like-it")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    with pytest.raises(UsageError, match="not TOML"):
        find(str(broken))
    with pytest.raises(UsageError, match=r"directory"):
        find(str(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="name: Field required"):
        find(str(tmp_path / "fifo"))


def areas(table: str, memory: dict[int, int]) -> tuple[list[int], list[str]]:
    notes: list[str] = []
    profile = Profile(parse(HEAD + table, "mine.toml"))
    return profile.areas(scope(memory), notes.append), notes


def test_list_that_loops_is_cut() -> None:
    table = "[areas]\nkind = 'list'\nhead = '0x10'\nnext = 8\n"
    assert areas(table, {0x18: 0x20, 0x28: 0}) == ([0x10, 0x20], [])
    assert areas(table, {0x18: 0x20, 0x28: 0x10}) == ([0x10, 0x20], [])  # a ring ends where it began
    found, notes = areas(table, {0x18: 0x20, 0x28: 0x30, 0x38: 0x20})
    assert found == [0x10, 0x20, 0x30]
    assert "loops back" in notes[0]


def test_unmapped_memory_is_told_and_the_rest_is_watched() -> None:
    found, notes = areas("[areas]\nkind = 'list'\nhead = '0x10'\nnext = 8\n", {0x18: 0x20})
    assert found == [0x10, 0x20]
    assert "unmapped" in notes[0]


def test_array_and_fixed() -> None:
    assert areas("[areas]\nkind = 'array'\nbase = 'current'\ncount = 3\nstride = 64\n", {})[0] == [
        0x2000,
        0x2040,
        0x2080,
    ]
    assert areas("[areas]\nkind = 'fixed'\naddresses = ['current', '1']\noffset = 4\n", {})[0] == [0x2004, 5]


def test_every_shipped_profile_has_a_page() -> None:
    docs = Path(__file__).parents[2] / "docs"
    assert sorted(page.stem for page in (docs / "profiles").glob("*.md")) == shipped_names()
    text = (docs / "profiles.md").read_text("utf-8")
    assert all(f"profiles/{name}.md" in text for name in shipped_names())


def test_an_image_that_reaches_beyond_the_area() -> None:
    with pytest.raises(UsageError, match="FXSAVE image at 8 ends beyond"):
        parse(HEAD + "[area]\nsize = 64\nsimd = 8\n[area.slots]\nrax = 0\n", "mine.toml")
