"""Debian packages for a release and architecture that need not be the machine's own.

Everything apt needs to keep is kept in a directory of ours: the machine's package lists, its architectures and its
sources stay as they are. Where the packages come from is derived from the machine's own sources.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gdbext.errors import EnvironmentUnusable
from gdbext.qemu import child

_ETC: Final = Path("/etc/apt")
_TIMEOUT: Final = "30"
"""Seconds without an answer after which apt gives up on a server."""

_NOT_CARRIED_OVER: Final = frozenset(("types", "suites", "enabled", "architectures", "components"))
_ONE_LINE: Final = re.compile(r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)")


@dataclass(frozen=True, slots=True)
class Origin:
    """One source of packages (sources.list(5)). ``fields``: what else its stanza says, ``Signed-By`` for example."""

    suites: tuple[str, ...]
    fields: Mapping[str, str] = field(default_factory=dict)

    def stanza(self) -> str:
        """The deb822 stanza of its main component."""
        lines = ["Types: deb", f"Suites: {' '.join(self.suites)}", "Components: main"]
        return "\n".join([*lines, *(f"{name}: {value}" for name, value in self.fields.items())]) + "\n"


@dataclass(frozen=True, slots=True)
class Package:
    """One package in one version."""

    name: str
    version: str


def running_release() -> str:
    """Code name of the distribution's release; raises EnvironmentUnusable where it has none."""
    try:
        name = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        name = ""
    if not name or shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise EnvironmentUnusable(
            "Debian packages cannot be fetched here", "this is no Debian-like system", "use the other guests"
        )
    return name


def origins(etc: Path = _ETC) -> Iterator[Origin]:
    """The machine's own enabled sources of binary packages, those of both notations (sources.list(5))."""
    for path in sorted((etc / "sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text("utf-8", "replace")):
            origin = _from_stanza(stanza)
            if origin is not None:
                yield origin
    for path in (etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))):
        if path.is_file():
            for line in path.read_text("utf-8", "replace").splitlines():
                match = _ONE_LINE.match(line)
                if match:
                    yield _from_line(match)


def _from_stanza(text: str) -> Origin | None:
    fields: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if line[:1].isspace():  # a continuation: an OpenPGP key may stand in Signed-By
            fields[name] = fields.get(name, "") + "\n" + line
            continue
        name, _, value = line.partition(":")
        fields[name] = value.strip()
    plain = {name.lower(): value for name, value in fields.items()}
    if "deb" not in plain.get("types", "").split() or plain.get("enabled", "yes").lower() in ("no", "false", "0"):
        return None
    kept = {name: value for name, value in fields.items() if name and name.lower() not in _NOT_CARRIED_OVER}
    return Origin(tuple(plain.get("suites", "").split()), kept)


def _from_line(match: re.Match[str]) -> Origin:
    fields = {"URIs": match["uri"]}
    for option in (match["options"] or "").split():
        name, _, value = option.partition("=")
        if name in ("signed-by", "trusted"):
            fields[name.title()] = value
    return Origin((match["suite"],), fields)


def derive(known: Iterator[Origin], running: str, release: str, backports: bool) -> list[Origin]:
    """The sources of `release`, from those of the `running` release (they differ by its name alone)."""
    result = []
    for origin in known:
        ours = [suite for suite in origin.suites if suite == running or suite.startswith(f"{running}-")]
        suites = [suite.replace(running, release, 1) for suite in ours if not suite.endswith("-backports")]
        if backports and running in ours:
            suites.append(f"{release}-backports")
        if suites:
            result.append(Origin(tuple(suites), origin.fields))
    return result


class Apt:
    """apt with state of its own in `directory`, for packages of `release` (None: the running one) and `arch`.

    Raises EnvironmentUnusable where the machine has no source to derive one from, or the lists cannot be had.
    """

    def __init__(self, directory: Path, arch: str, release: str | None = None, *, backports: bool = False) -> None:
        running = running_release()
        self._release = release or running
        self._directory = directory
        found = derive(origins(), running, self._release, backports)
        if not found:
            raise EnvironmentUnusable(
                f"no packages of {self._release} can be fetched", f"apt has no source for {running} here"
            )
        self._environment = {**os.environ, "APT_CONFIG": str(self._configure(arch, found)), "LC_ALL": "C"}
        self._trouble = ""
        try:
            self._run("apt-get", "-qq", "update")
        except EnvironmentUnusable as error:  # one source of several may fail: what matters is what is found
            self._trouble = error.why

    def _configure(self, arch: str, found: list[Origin]) -> Path:
        for name in ("lists/partial", "cache/archives/partial", "sources"):
            (self._directory / name).mkdir(parents=True, exist_ok=True)
        (self._directory / "status").touch()
        (self._directory / "sources" / "derived.sources").write_text("\n".join(o.stanza() for o in found), "utf-8")
        # The machine's own settings (a proxy, for example) are read first; hooks of theirs are not ours to run.
        own = f'#include "{_ETC / "apt.conf"}"\n' if (_ETC / "apt.conf").is_file() else ""
        hooks = "".join(f"#clear {hook};\n" for hook in ("APT::Update", "DPkg::Post-Invoke", "DPkg::Pre-Invoke"))
        settings = {
            "Dir::State": self._directory,
            "Dir::State::lists": self._directory / "lists",
            "Dir::State::status": self._directory / "status",
            "Dir::Cache": self._directory / "cache",
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": self._directory / "sources",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Architecture": arch,
            "APT::Architectures": arch,
            "APT::Sandbox::User": "root",  # the directory is its owner's alone
            "Acquire::http::Timeout": _TIMEOUT,
            "Acquire::https::Timeout": _TIMEOUT,
        }
        main = self._directory / "main.conf"
        main.write_text(own + hooks + "".join(f'{name} "{value}";\n' for name, value in settings.items()), "utf-8")
        first = self._directory / "apt.conf"
        first.write_text(f'Dir::Etc::main "{main}";\n', "utf-8")
        return first

    def candidate(self, name: str, *, backports: bool = False) -> Package:
        """The newest version of `name` in the release proper, or in its backports.

        Raises EnvironmentUnusable where there is none, or the lists that would name it could not be had.
        """
        for line in self._run("apt-cache", "madison", name).splitlines():  # newest first
            _, version, archive = (cell.strip() for cell in line.split("|"))
            if archive.endswith("Packages") and backports == (f"{self._release}-backports/" in archive):
                return Package(name, version)
        where = f"{self._release}-backports" if backports else self._release
        raise EnvironmentUnusable(f"there is no package {name} in {where}", self._trouble)

    def dependency(self, package: Package, prefix: str) -> Package | None:
        """The first package beginning with `prefix` that `package` needs in one exact version, or None."""
        said = self._run("apt-cache", "show", f"{package.name}={package.version}")
        match = re.search(rf"^Depends:.*?\b({re.escape(prefix)}\S*) \(= ([^)]+)\)", said, re.MULTILINE)
        return Package(match[1], match[2]) if match else None

    def download(self, package: Package, directory: Path) -> Path:
        """Fetch `package` into `directory` and return the .deb."""
        self._run("apt-get", "-qq", "download", f"{package.name}={package.version}", cwd=directory)
        found = sorted(directory.glob(f"{package.name}_*.deb"))
        if not found:
            raise EnvironmentUnusable(f"apt brought no {package.name}")
        return found[0]

    def _run(self, *command: str, cwd: Path | None = None) -> str:
        done = child.run(*command, cwd=cwd, env=self._environment)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:"))]
            raise EnvironmentUnusable(
                f"packages of {self._release} cannot be fetched",
                said[0] if said else f"{command[0]} ended with status {done.returncode}",
                "check the network, then try again",
            )
        return done.stdout


def extract(deb: Path, wanted: Mapping[str, Path]) -> None:
    """Write the first file of `deb` that matches each regular expression of `wanted` (on ``./path``) to its place.

    Raises EnvironmentUnusable where one is not there.
    """
    missing = dict(wanted)
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as unpacking:
        assert unpacking.stdout is not None
        try:
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
                for member in archive:
                    name = next((name for name in missing if member.isfile() and re.fullmatch(name, member.name)), None)
                    if name is not None:
                        content = archive.extractfile(member)
                        assert content is not None
                        missing.pop(name).write_bytes(content.read())
                    if not missing:
                        break
        except tarfile.TarError as error:
            raise EnvironmentUnusable(f"{deb.name} is damaged", str(error), "try again") from error
        finally:
            unpacking.kill()
    if missing:
        raise EnvironmentUnusable(f"{deb.name} does not hold {', '.join(missing)}")
