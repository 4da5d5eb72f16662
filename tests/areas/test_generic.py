"""Nothing known of the kernel, no symbols: the bugs whose guests have a profile are found all the same."""

from __future__ import annotations

import pytest

from gdbext.qemu import guests
from gdbext.qemu.guests import Guest
from tests.guests_live.watching import watch

pytestmark = pytest.mark.guest

PROFILED = [g for g in map(guests.find, guests.names()) if g.profile and g.linux is None]
"""The others run without a profile anyway (tests/guests_live)."""


def name(guest: Guest) -> str:
    return guest.name


@pytest.mark.parametrize("guest", [guest for guest in PROFILED if guest.codes], ids=name)
def test_bug_without_profile_and_symbols(guest: Guest) -> None:
    run = watch(guest.name, "--via", "probe", "--profile", "generic", "--stripped", "--max-findings", "4")
    assert run.status == 1, run.evidence
    assert run.codes[0] == guest.codes[0], run.evidence
    assert set(guest.codes) <= set(run.codes), run.evidence
    first = run.document["findings"][0]
    assert first["writer"], run.evidence
    assert first["writer"]["symbol"] is None, run.evidence


@pytest.mark.parametrize("guest", [guest for guest in PROFILED if not guest.codes], ids=name)
def test_silence_without_profile_and_symbols(guest: Guest) -> None:
    run = watch(guest.name, "--via", "probe", "--profile", "generic", "--stripped")
    assert (run.status, run.codes) == (0, []), run.evidence
