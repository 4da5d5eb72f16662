"""The import order: a layer imports only from layers before it in this list (and from gdbext.errors)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gdbext

ROOT = Path(gdbext.__file__).parent

LAYERS = (
    "arch",
    "events",
    "code",
    "ledger",
    "rules",
    "profiles",
    "sources",
    "qemu",
    "recording",
    "report",
    ("gdb", "repl"),
    "cli",
)
FREE = {"errors"}
"""Modules outside the layers that anybody may import."""
LOADER = "ctxwatch.py"
"""What GDB sources: it starts the gdb layer."""

DATA = {"probe"}
"""Packages that hold files for others and import nothing."""

RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in ([layer] if isinstance(layer, str) else layer)}


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted module, line) of everything that the file imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            yield node.module, node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def sources() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path.name != LOADER)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_layer(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    own = parts[0].removesuffix(".py")
    for module, line in imported(path):
        names = module.split(".")
        if names[0] == "gdb":
            assert own == "gdb", f"{path}:{line}: only the gdb layer may import gdb"
        if names[0] != "gdbext" or len(names) < 2 or names[1] in FREE or names[1] == own:
            continue
        if names[1] not in RANK:
            assert names[1].startswith("__"), f"{path}:{line}: {module} belongs to no layer"
            continue
        assert own in RANK, f"{path}:{line}: {own} is outside the layers and imports {module}"
        assert RANK[names[1]] < RANK[own], f"{path}:{line}: {own} may not import {module}"


def test_no_modules_import_one_another() -> None:
    """Not for types alone, and not inside functions either; a circle is named by the error."""
    modules = {".".join(("gdbext", *path.relative_to(ROOT).with_suffix("").parts)): path for path in sources()}
    needs = {name: {other for other, _ in imported(path) if other in modules} for name, path in modules.items()}
    TopologicalSorter(needs).prepare()


def test_every_package_has_a_rank() -> None:
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert packages <= RANK.keys() | DATA


def test_a_violation_is_seen(tmp_path: Path) -> None:
    """The walk itself sees imports inside functions and `from gdbext import x`."""
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from gdbext import cli\n    import gdbext.repl\n")
    assert {name for name, _ in imported(file)} >= {"gdbext.cli", "gdbext.repl"}
