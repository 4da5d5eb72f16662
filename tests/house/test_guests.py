"""The bundled guests' files and builds."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdbext.errors import EnvironmentUnusable, UsageError
from gdbext.qemu import guests, images, making

GOOD = """
title = "a guest"
codes = ["CW102"]
arch = "x86_64"
style = "nrk"
[expect]
until = "done"
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ctxwatch"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", guests.names())
def test_every_bundled_guest_loads(name: str) -> None:
    guest = guests.find(name)
    assert guest.title
    assert bool(guest.codes) == bool(guest.wrong), "a guest with a bug says what is wrong, a clean one does not"
    assert guest.name.startswith(("clean", "linux")) == (not guest.codes)


def test_defaults(tmp_path: Path) -> None:
    guest = guests.load(write(tmp_path, GOOD))
    assert (guest.name, guest.cpu, guest.smp, guest.seconds, guest.nmi_ms) == ("a", "qemu64", 1, 20.0, 0)
    assert guest.command(Path("k"))[:3] == ["qemu-system-x86_64", "-kernel", "k"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "unit = 1\n", "unknown key expect.unit"),
        (GOOD.replace('title = "a guest"', ""), "the key title is missing; give it a string"),
        (GOOD.replace('"x86_64"', '"arm"'), "arch is 'arm'; allowed: x86_64, i386"),
        (GOOD.replace("CW102", "CW999"), "codes is 'CW999'"),
        (GOOD + "seconds = 'x'\n", "expect.seconds is 'x'; give it a number"),
        (GOOD + "[watch]\nsimd = 1\n", "watch.simd is 1; give it a boolean"),
        (GOOD.replace('["CW102"]', "[1]"), "codes holds 1; give it a list of strings"),
        (GOOD + "[qemu]\nsmp = true\n", "qemu.smp is True; give it an integer"),
        ("title = ", "cannot read"),
        ("\x00", "cannot read"),
    ],
)
def test_a_wrong_file_is_told_with_its_key(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as error:
        guests.load(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_an_unknown_guest_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean nrk-rflags"):
        guests.find("nrk-rflag")
    with pytest.raises(UsageError, match="ctxwatch guests"):
        guests.find("../../no/such/file")


def test_build_is_cached_by_content(cache: Path) -> None:
    guest = guests.find("nrk-rflags")
    kernel = guests.build(guest)
    assert kernel.is_relative_to(cache)
    stamp = kernel.stat().st_mtime_ns
    assert guests.build(guest) == kernel
    assert kernel.stat().st_mtime_ns == stamp
    assert guests.build(guests.find("clean-nrk")) != kernel
    assert not list(cache.rglob(".build-*"))


def test_the_stripped_kernel_has_no_symbols(cache: Path) -> None:
    guest = guests.find("clean-nrk")
    assert len(images.load(guests.build(guest)).symbols) > 50
    assert len(images.load(guests.build(guest, stripped=True)).symbols) == 0


def test_a_compiler_that_fails_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(EnvironmentUnusable, match="cannot be built"):
        guests.build(guests.find("clean-nrk"))
    assert not [path for path in cache.rglob("*") if path.name != "guests"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("make: gcc: No such file or directory\nmake: *** [Makefile:54: a.o] Error 127\n", "make: gcc: No such file"),
        ("/bin/sh: 1: objcopy: not found\nmake: *** [Makefile:46: a] Error 127\n", "/bin/sh: 1: objcopy: not found"),
        ("a.c: In function 'f':\na.c:3: error: 'x' undeclared\nmake: *** [a.o] Error 1\n", "a.c:3: error: 'x'"),
        ("\nmake was killed\n", "make was killed"),
        ("", ""),
    ],
)
def test_a_failed_build_is_told_by_its_cause(said: str, told: str) -> None:
    assert making.first_trouble(said).startswith(told)
