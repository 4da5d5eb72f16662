"""Deriving apt's sources for another release, architecture or pocket from the machine's own."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from gdbext.errors import EnvironmentUnusable
from gdbext.qemu import apt, linux
from gdbext.qemu.apt import Origin, Package

DEB822 = """
# a comment
Types: deb deb-src
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Architectures: amd64
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb-src
URIs: http://sources.invalid/debian
Suites: bookworm

Types: deb
URIs: http://off.invalid/debian
Suites: bookworm
Enabled: no
"""
ONE_LINE = """
deb [arch=amd64 signed-by=/keys/a.gpg] http://security.invalid/debian-security bookworm-security main
deb-src http://sources.invalid/debian bookworm main
# deb http://off.invalid/debian bookworm main
deb http://other.invalid/node nodistro main
"""


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "a.sources").write_text(DEB822)
    (tmp_path / "sources.list").write_text(ONE_LINE)
    return tmp_path


def test_both_notations_are_read(etc: Path) -> None:
    found = list(apt.origins(etc))
    assert [origin.suites for origin in found] == [
        ("bookworm", "bookworm-updates", "bookworm-backports"),
        ("bookworm-security",),
        ("nodistro",),
    ]
    assert found[0].fields == {
        "URIs": "http://mirror.invalid/debian",
        "Signed-By": "/usr/share/keyrings/debian-archive-keyring.gpg",
    }
    assert found[1].fields == {"URIs": "http://security.invalid/debian-security", "Signed-By": "/keys/a.gpg"}


def test_the_running_release_without_backports(etc: Path) -> None:
    derived = apt.derive(apt.origins(etc), "bookworm", "bookworm", backports=False)
    assert [origin.suites for origin in derived] == [("bookworm", "bookworm-updates"), ("bookworm-security",)]


def test_backports_come_from_where_the_release_comes_from(etc: Path) -> None:
    derived = apt.derive(apt.origins(etc), "bookworm", "bookworm", backports=True)
    assert [origin.suites for origin in derived] == [
        ("bookworm", "bookworm-updates", "bookworm-backports"),
        ("bookworm-security",),
    ]


def test_an_older_release_from_a_newer_one_s_sources() -> None:
    known = iter([Origin(("trixie", "trixie-updates")), Origin(("trixie-security",))])
    derived = apt.derive(known, "trixie", "bookworm", backports=False)
    assert [origin.suites for origin in derived] == [("bookworm", "bookworm-updates"), ("bookworm-security",)]


def test_a_stanza_serves_the_main_component_of_any_architecture(etc: Path) -> None:
    stanza = next(apt.origins(etc)).stanza()
    assert "Components: main\n" in stanza
    assert "Architectures" not in stanza
    assert "Types: deb\n" in stanza


def test_a_key_in_the_stanza_is_kept() -> None:
    text = "Types: deb\nURIs: http://a.invalid\nSuites: x\nComponents: main\nSigned-By:\n -----BEGIN-----\n .\n AbC\n"
    origin = apt._from_stanza(text)
    assert origin is not None
    assert "Signed-By: \n -----BEGIN-----\n .\n AbC\n" in origin.stanza()


def test_no_source_for_the_release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(apt, "origins", lambda: iter(()))
    monkeypatch.setattr(apt, "running_release", lambda: "bookworm")
    with pytest.raises(EnvironmentUnusable, match="no packages of bookworm can be fetched: apt has no source"):
        apt.Apt(tmp_path, "amd64")


def a_package(directory: Path, names: list[str]) -> Path:
    """A .deb with files of these names, which hold their names."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    control = io.BytesIO()
    with tarfile.open(fileobj=control, mode="w:xz"):
        pass
    (directory / "debian-binary").write_text("2.0\n")
    (directory / "control.tar.xz").write_bytes(control.getvalue())
    (directory / "data.tar.xz").write_bytes(data.getvalue())
    members = ["debian-binary", "control.tar.xz", "data.tar.xz"]
    subprocess.run(["ar", "rc", "a.deb", *members], cwd=directory, check=True)
    return directory / "a.deb"


def test_wanted_files_are_extracted_and_no_others(tmp_path: Path) -> None:
    deb = a_package(tmp_path, ["./boot/vmlinuz-1", "./boot/other", "./bin/a"])
    apt.extract(deb, {r"\./boot/vmlinuz-.*": tmp_path / "kernel"})
    assert (tmp_path / "kernel").read_text() == "./boot/vmlinuz-1"
    assert not (tmp_path / "boot").exists()


def test_a_package_without_the_file(tmp_path: Path) -> None:
    deb = a_package(tmp_path, ["./boot/other"])
    with pytest.raises(EnvironmentUnusable, match=r"a\.deb does not hold"):
        apt.extract(deb, {r"\./boot/vmlinuz-.*": tmp_path / "kernel"})


def test_a_damaged_package(tmp_path: Path) -> None:
    deb = tmp_path / "a.deb"
    deb.write_bytes(b"!<arch>\n" + b"x" * 500)
    with pytest.raises(EnvironmentUnusable, match="damaged"):
        apt.extract(deb, {r"\./boot/vmlinuz-.*": tmp_path / "kernel"})


@pytest.mark.parametrize("split", [False, True])
def test_a_kernel_s_files_are_found_in_one_package_or_in_several(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, split: bool
) -> None:
    modules = "./usr/lib/modules/7.3-cloud-amd64"
    held = {"busybox-static": ["./usr/bin/busybox"], "linux-image-7.3": ["./boot/vmlinuz-6.1", "./boot/config-6.1"]}
    if split:
        held["linux-image-7.3"] = ["./usr/share/doc/linux-image"]
        held["linux-binary-7.3"] = [f"{modules}/vmlinuz"]
        held["linux-base-7.3"] = [f"{modules}/System.map", f"{modules}/config"]

    class Archive:
        def __init__(self, *_: object, **__: object) -> None: ...

        def candidate(self, name: str, backports: bool = False) -> Package:
            return Package(name, "1")

        def dependency(self, package: Package, prefix: str) -> Package | None:
            return next((Package(name, "1") for name in held if name.startswith(prefix)), None)

        def download(self, package: Package, directory: Path) -> Path:
            made = directory / package.name
            made.mkdir()
            return a_package(made, held[package.name])

    monkeypatch.setattr(apt, "Apt", Archive)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fetched = linux.fetch(linux.Kernel("linux-image-cloud", "x86_64", "bookworm"))
    names = {"vmlinuz": "boot/vmlinuz-6.1", "config": "boot/config-6.1"}
    for name, was in names.items():
        assert (fetched / name).read_text() == (f"{modules}/{name}" if split else f"./{was}")
    assert (fetched / "busybox").read_text() == "./usr/bin/busybox"
    assert (fetched / "version").read_text() == "linux-image-7.3 1\n"
