"""Initial RAM file systems, as the cpio program reads them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from gdbext.qemu import cpio

needs_cpio = pytest.mark.skipif(shutil.which("cpio") is None, reason="the cpio program is not installed")


@needs_cpio
def test_cpio_reads_what_is_written(tmp_path: Path) -> None:
    entries = [
        cpio.directory("bin"),
        cpio.program("bin/a", b"abcde"),
        cpio.program("bin/empty", b""),
        cpio.character_device("console", 5, 1),
    ]
    data = cpio.archive(entries)
    listed = subprocess.run(["cpio", "-itv"], input=data, capture_output=True, check=True, env={"LC_ALL": "C"})
    lines = [line.split() for line in listed.stdout.decode().splitlines()]
    assert [(line[0], line[-1]) for line in lines] == [
        ("drwxr-xr-x", "bin"),
        ("-rwxr-xr-x", "bin/a"),
        ("-rwxr-xr-x", "bin/empty"),
        ("crw-------", "console"),
    ]
    assert lines[3][4:6] == ["5,", "1"]
    subprocess.run(["cpio", "-id", "--quiet", "bin*"], input=data, cwd=tmp_path, check=True)
    assert (tmp_path / "bin" / "a").read_bytes() == b"abcde"


def test_members_begin_at_multiples_of_four() -> None:
    data = cpio.archive([cpio.program("a", b"x"), cpio.program("bc", b"yz")])
    assert len(data) % 4 == 0
    assert all(data.find(b"070701", at) % 4 == 0 for at in (0, 1, 150))
