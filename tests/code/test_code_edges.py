"""The edges of windows, and the safe addresses offered instead of ones inside."""

from __future__ import annotations

from typing import Any

from gdbext.arch.vectors import NMI
from gdbext.code.edges import edges, nearest_safe, opened_at
from gdbext.code.paths import Entry, Gateway, explore
from gdbext.code.windows import Reason, windows
from tests.code.test_code_windows import SYSCALL

NMI_CODE = """
    nmi: push %rax
    n1: call handler
    n2: pop %rax
        iretq
    handler: sti
    shadow: nop
    after: ret
"""


def test_edges_are_entries_openers_and_returns(assemble: Any) -> None:
    snippet = assemble(SYSCALL + NMI_CODE.replace("handler", "other"))
    entries = [Entry(snippet["entry"], Gateway.SYSCALL), Entry(snippet["nmi"], vector=NMI, ist=1)]
    reach = explore(snippet.code, entries)
    found = windows(snippet.code, reach)
    at = edges(found, snippet.code, reach, {snippet["entry"], snippet["nmi"]})
    names = {name: at[address].reason for name, address in snippet.symbols.items() if address in at}
    assert names == {
        "entry": Reason.SYSCALL_ENTRY,
        "b1": Reason.EXIT,  # not b2: it lies inside already
        "handler": Reason.GS_LOAD,
        "nmi": Reason.IST_HANDLER,
        "n2": Reason.IST_HANDLER,
        "other": Reason.SHADOW,
    }
    # An entry that no step leads to is none.
    assert snippet["nmi"] not in edges(found, snippet.code, reach, {snippet["entry"]})


def test_what_an_instruction_opens(assemble: Any) -> None:
    snippet = assemble(SYSCALL)
    found = windows(snippet.code, explore(snippet.code, [Entry(snippet["entry"], Gateway.SYSCALL)]))
    opened = opened_at(found, snippet["b1"])
    assert opened is not None
    assert opened.reason is Reason.EXIT
    assert opened_at(found, snippet["b2"]) is None
    assert opened_at(found, snippet["entry"]) is None
    assert opened_at(found, snippet["a3"]) is None


def test_the_nearest_safe_address_lies_on_the_way(assemble: Any) -> None:
    snippet = assemble(SYSCALL + NMI_CODE.replace("handler", "other"))
    entries = [Entry(snippet["entry"], Gateway.SYSCALL), Entry(snippet["nmi"], vector=NMI, ist=1)]
    reach = explore(snippet.code, entries)
    found = windows(snippet.code, reach)

    def nearest(name: str) -> int | None:
        return nearest_safe(found, reach.calls, snippet[name])

    assert nearest("entry") == nearest("a2") == snippet["a3"]
    assert nearest("b3") == snippet["b1"]
    assert nearest("n2") == snippet["other"]
    assert nearest_safe(found, {}, snippet["n2"]) is None
