"""Kernels whose threads are all kernel code: the FS base and the lazily switched FPU are the thread's there."""

from __future__ import annotations

from typing import Any

import pytest

from gdbext.events.row import Batch
from gdbext.rules.engine import Engine
from gdbext.rules.kernel_only import ALONE
from tests.rules.rows import KERNEL_RIP, batch, context, entry, exit_, stamp
from tests.rules.test_lazy_fpu import found, goes_on, stops, uses, with_fpu

RING0 = {"cs": 8, "ss": 16}
MINE: dict[str, Any] = context(1) | RING0 | {"rip": KERNEL_RIP + 0x40, "rsp": 0xFFFF800000010000, "fs_base": 0x7000}
OTHERS: dict[str, Any] = context(2) | RING0 | {"rip": KERNEL_RIP + 0x80, "rsp": 0xFFFF800000020000, "fs_base": 0x8000}
BOOT = [row(context(n) | RING0 | {"rip": KERNEL_RIP + n}) for n in range(ALONE // 2) for row in (entry, exit_)]
BOOT_FPU = [with_fpu(row, 0) for row in BOOT]
USER = [entry(context(3)), exit_(context(3))]


@pytest.mark.parametrize(
    ("before", "changed", "expected"),
    [
        ([], {"fs_base": 0x8000}, [("CW104", "fs_base")]),
        ([], {}, []),
        ([], {"fs_base": 0x8000, "cpu": 1}, []),
        (USER, {"fs_base": 0x8000}, []),
    ],
    ids=["another's", "its own", "the CPU's", "the user's"],
)
def test_the_fs_base_of_a_kernel_thread(
    before: list[Batch], changed: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert found(*BOOT, *before, entry(MINE), entry(OTHERS), exit_(MINE | changed)) == expected


def test_what_comes_first_may_belong_to_user_code_not_yet_seen() -> None:
    assert found(entry(MINE), exit_(MINE | {"fs_base": 0x8000}), *USER) == []


def test_whose_fs_base_it_is() -> None:
    engine = Engine()
    engine.feed(stamp(batch(*BOOT, entry(MINE), entry(OTHERS), exit_(MINE | {"fs_base": 0x8000}))))
    (finding,) = engine.findings
    assert f"that of the thread suspended at event {ALONE + 2}" in finding.cause


USED = [stops(MINE, None), *uses(MINE, 0), stops(MINE, 5)]
AWAY = [goes_on(OTHERS, None), *uses(OTHERS, 0), stops(OTHERS, 7)]


def test_the_fpu_of_a_kernel_thread() -> None:
    assert found(*BOOT_FPU, *USED, *AWAY, goes_on(MINE, None), *uses(MINE, 5)) == []
    assert found(*BOOT_FPU, *USED, *AWAY, goes_on(MINE, None), *uses(MINE, 7)) == [("CW105", "xmm0")]


def test_the_fpu_is_not_hidden_from_the_next_thread() -> None:
    assert found(*BOOT_FPU, *USED, *AWAY, goes_on(MINE, 5)) == []
    assert found(*BOOT_FPU, *USED, *AWAY, goes_on(MINE, 7)) == [("CW105", "xmm0")]


def test_beside_user_code_kernel_code_has_no_fpu() -> None:
    user = [stops(context(3), None), goes_on(context(3), None)]
    assert found(*BOOT_FPU, *user, *USED, *AWAY, goes_on(MINE, None), *uses(MINE, 7)) == []
