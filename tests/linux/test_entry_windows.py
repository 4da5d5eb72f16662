"""What the two fatal exceptions of Linux's entry code look like, and context tracking: the bug and its false alarm."""

from __future__ import annotations

import pytest

from gdbext.events.row import Batch
from gdbext.profiles import profile as profiles
from gdbext.rules.engine import Engine
from gdbext.rules.finding import Finding
from gdbext.rules.policy import Policy
from tests.rules.rows import Flag, How, batch, context, entry, exit_, stamp
from tests.rules.test_gs import KERNEL, normal, swap

TRACKING = profiles.find("linux-amd64-nohz_full").policy()
IN_KERNEL, IN_USER = 0x1000, 0x1002
"""context_tracking.state: bits above the context count RCU's states."""


def found(*rows: Batch, policy: Policy | None = None) -> list[Finding]:
    """What is found, after a normal round."""
    engine = Engine(policy or Policy())
    engine.feed(stamp(batch(*rows)))
    return engine.findings


def test_an_exception_very_early_in_syscall() -> None:
    """It has no IST stack, and RSP is still the user's."""
    ctx = context()
    early = KERNEL | {"rsp": ctx["rsp"]}
    (one,) = found(*normal(40), entry(ctx, How.SYSCALL), swap(), entry(early, How.EXCEPTION, frame=ctx["rsp"] - 40))
    assert one.code == "CW501"
    assert "while RSP was the user's, without an IST stack" in one.cause
    assert "non-IST exceptions there are fatal" in one.look_at
    assert "paranoid" not in one.cause


def test_an_exception_outside_swapgs_that_is_not_paranoid() -> None:
    """Its stack is right, but the user's GS base is active and its handler goes by CS."""
    ctx, inside = context(), KERNEL | {"gs_base": 0x7000}
    debug = entry(inside, How.EXCEPTION, vector=1, flags=Flag.IST)
    rows = entry(ctx, How.SYSCALL), debug, exit_(inside), swap(), swap(), exit_(ctx, How.SYSRET)
    (one,) = found(*normal(40), *rows)
    assert one.code == "CW501"
    assert "a non-paranoid exception outside swapgs" in one.cause
    assert "RSP" not in one.cause


def tracked(row: Batch, value: int) -> Batch:
    row["tracked"][0][0] = value
    return row


@pytest.mark.parametrize(
    ("before", "after", "codes"),
    [
        (IN_USER, IN_USER, []),  # the known false alarm: CS says kernel, the soft state still says user
        (IN_USER, IN_KERNEL, ["CW701"]),
        (IN_KERNEL, IN_USER, ["CW701"]),
        (IN_KERNEL, IN_KERNEL, []),
        (IN_KERNEL, IN_KERNEL + 4, []),  # what is counted above the context is none of it
    ],
)
def test_an_exception_before_the_entry_was_noted(before: int, after: int, codes: list[str]) -> None:
    """Between the CPU's entry and the note, interrupts are off: CS and the state may disagree, but must come back."""
    ctx, early = context(), context(2, user=False, rflags=0x46)
    rows = [
        tracked(entry(ctx, How.SYSCALL), IN_USER),
        tracked(entry(early, How.EXCEPTION, vector=1), before),
        tracked(exit_(early), after),
        tracked(exit_(ctx, How.SYSRET), IN_USER),
    ]
    assert [finding.code for finding in found(*rows, policy=TRACKING)] == codes


@pytest.mark.parametrize(("value", "codes"), [(IN_USER, ["CW702"]), (IN_KERNEL, []), (IN_KERNEL + 1, [])])
def test_kernel_code_that_lets_interrupts_in_has_noted_its_entry(value: int, codes: list[str]) -> None:
    late = context(2, user=False)
    rows = tracked(entry(late), value), tracked(exit_(late), value)
    assert [finding.code for finding in found(*rows, policy=TRACKING)] == codes


@pytest.mark.parametrize(("value", "codes"), [(IN_USER, []), (IN_KERNEL, ["CW702"])])
def test_user_code_runs_under_the_user_s_state(value: int, codes: list[str]) -> None:
    rows = tracked(entry(context()), value), tracked(exit_(context()), value)
    assert [finding.code for finding in found(*rows, policy=TRACKING)] == codes
