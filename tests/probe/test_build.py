"""Building the probe: the right API by asking, the cache, a second build at the same time, every refusal."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gdbext.errors import EnvironmentUnusable, UsageError
from gdbext.qemu.probe import APIS, ProbeBuild, build, plugin_args

UP_TO = "plugin requires API version 7, but this QEMU supports only up to version"

IS_QEMU = 'case "$1" in --version) echo "QEMU emulator version 7.2"; exit;; esac'


def fake_qemu(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def cc(tmp_path: Path) -> str:
    """A compiler that makes an empty object at once."""
    return str(fake_qemu(tmp_path / "quick-cc", 'while [ $# -gt 1 ]; do [ "$1" = -o ] && : > "$2"; shift; done'))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ctxwatch" / "probe"


def test_qemu_takes_the_object_built_for_it(probe: ProbeBuild) -> None:
    words = ["-machine", "none", "-display", "none", "-S", "-plugin", f"{probe.path},check=on"]
    done = subprocess.run([str(probe.qemu), *words], capture_output=True, text=True, timeout=30, check=False)
    assert f"ctxprobe: fits API {probe.api}" in done.stderr


@pytest.mark.parametrize("api", APIS)
def test_every_api_compiles_without_a_warning(api: int, tmp_path: Path, compiled: object) -> None:
    from gdbext.qemu.probe import _sources

    for name, text in _sources().items():
        (tmp_path / name).write_text(text)
    words = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden", f"-DAPI={api}"]
    subprocess.run([*words, "-o", str(tmp_path / "out.so"), str(tmp_path / "ctxprobe.c")], check=True)


def test_the_api_is_what_qemu_says_and_is_remembered(cache: Path, tmp_path: Path, cc: str) -> None:
    log = tmp_path / "log"
    qemu = fake_qemu(
        tmp_path / "qemu",
        f'echo "$@" >> {log}; case "$*" in *ctxprobe-5-*) echo "ctxprobe: fits API 5" >&2;; '
        f'*) echo "qemu: Could not load plugin x: {UP_TO} 5" >&2; esac; exit 1',
    )
    assert build(qemu, cc).api == 5
    assert len(log.read_text().splitlines()) == 2
    made = build(qemu, cc)
    assert made.api == 5
    assert made.path.exists()
    assert len(log.read_text().splitlines()) == 2  # asked once
    assert not list(cache.glob("build-*"))


def test_two_builds_at_once(cache: Path, tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path / "qemu", 'echo "ctxprobe: fits API 7" >&2; exit 1')
    with ThreadPoolExecutor(4) as pool:
        paths = {made.path for made in pool.map(lambda _: build(qemu), range(4))}
    assert len(paths) == 1
    assert len(list(cache.glob("*.so"))) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (f'echo "Could not load plugin: {UP_TO} 1" >&2; exit 1', "its plugin API is 1: it is older than 9.2"),
        (
            'echo "plugin requires API version 7, but this QEMU supports only a minimum version of 9" >&2',
            "its plugin API is 9: it is newer than this ctxwatch knows",
        ),
        (
            'echo "Could not load plugin p.so: p.so: undefined symbol: qemu_plugin_read_memory_vaddr" >&2; exit 1',
            "its plugins cannot read memory: it is older than 9.2",
        ),
        (f'{IS_QEMU}; echo "qemu: -plugin: invalid option" >&2; exit 1', "loads no plugins: -plugin: invalid option"),
        (f"{IS_QEMU}; exit 0", "loads no plugins: it said nothing"),
    ],
)
def test_why_there_is_no_probe(cache: Path, tmp_path: Path, cc: str, body: str, said: str) -> None:
    with pytest.raises(EnvironmentUnusable, match=said):
        build(fake_qemu(tmp_path / "qemu", body), cc)


def test_another_program_is_no_qemu(cache: Path, tmp_path: Path, cc: str) -> None:
    with pytest.raises(UsageError, match=r"kernel\.elf is no QEMU; name a qemu-system-x86_64"):
        build(fake_qemu(tmp_path / "kernel.elf", "exit 0"), cc)


def test_other_accelerators_are_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentUnusable, match="the probe needs TCG, not kvm"):
        build(fake_qemu(tmp_path / "qemu", "exit 0"), accelerator="kvm")


def test_no_compiler_or_one_that_fails(cache: Path, tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path / "qemu", "exit 0")
    with pytest.raises(EnvironmentUnusable, match=r"no C compiler \(no-such-cc\).*; install gcc"):
        build(qemu, cc="no-such-cc")
    with pytest.raises(EnvironmentUnusable, match="the probe does not compile: broken: error: no"):
        build(qemu, cc=str(fake_qemu(tmp_path / "cc", 'echo "broken: error: no" >&2; exit 1')))
    with pytest.raises(EnvironmentUnusable, match=r"no .*/nothing here"):
        build(tmp_path / "nothing")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(EnvironmentUnusable, match="set XDG_CACHE_HOME"):
        build(Path(shutil.which("true") or "/bin/true"))


def test_the_words_that_load_it(tmp_path: Path) -> None:
    made = ProbeBuild(tmp_path / "a,b.so", 4, Path("qemu"), told=True)
    assert plugin_args(made, Path("/r,ing")) == ["-plugin", f"{tmp_path}/a,,b.so,ring=/r,,ing"]
    words = plugin_args(made, Path("/r"), simd=True, halt=True, watch=True, stores=True, every_self=True, rows=64)[1]
    assert words.endswith(",ring=/r,simd=on,halt=on,watch=on,stores=on,self=on,rows=64")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("ring=/x,sind=on", "bad option 'sind=on'; known: ring=FILE, simd="),
        ("ring=/x,simd=yes", "bad option 'simd=yes'"),
        ("ring=/x,rows=100", "bad option 'rows=100'"),
        ("simd=on", "the option ring=FILE is missing"),
        ("ring=/nowhere/at/all", "cannot open the ring /nowhere/at/all: No such file or directory"),
    ],
)
def test_options_with_typos(probe: ProbeBuild, options: str, said: str) -> None:
    words = ["-machine", "none", "-display", "none", "-S", "-plugin", f"{probe.path},{options}"]
    done = subprocess.run([str(probe.qemu), *words], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert said in done.stderr
