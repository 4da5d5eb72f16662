"""A session as one self-contained HTML page: no network, nothing of the guest's is markup.

Findings, counts and histograms are plain HTML and SVG, readable without JavaScript; the timeline is drawn by the page's
one script, which the page's Content-Security-Policy admits by its digest, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from html import escape
from importlib import resources
from typing import Final

from gdbext.arch import vectors
from gdbext.errors import printable
from gdbext.recording.header import Header
from gdbext.report import htmlfinding
from gdbext.report.document import RunReport
from gdbext.report.gather import PER_OCTAVE, Gatherer, Latency, bin_start
from gdbext.report.payload import Symbol, payload
from gdbext.report.words import duration
from gdbext.rules.finding import Finding

FINDINGS: Final = 500
"""Findings shown in full at most, the first ones; the timeline marks all."""
HEADS: Final = 3
"""Of these, how many are named above everything else."""
_SCRIPTS: Final = ("data.js", "timeline.js", "main.js")
"""Parts of the page's one script, in order."""
_SPARK: Final = (160, 28)
"""Width and height of a latency histogram."""
_BAR: Final = 120
"""Width of the longest bar of the interrupt counts."""


def page(report: RunReport, header: Header, gathered: Gatherer, symbol: Symbol) -> str:
    """The page. symbol: the name of a guest virtual address, or None."""
    shown = list(report.findings[:FINDINGS])
    style, script = _asset("page.css"), "".join(map(_asset, _SCRIPTS))
    parts = {
        "TITLE": _text(f"{report.guest}: ctxwatch report"),
        "POLICY": f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'",
        "STYLE": style,
        "SCRIPT": script,
        "GUEST": _text(report.guest),
        "VERDICT": _verdict(report),
        "HEADS": _heads(shown, len(report.findings)),
        "FACTS": _facts(report, header, gathered),
        "FINDINGS": _findings(report, shown),
        "VECTORS": _vectors(gathered),
        "DATA": payload(gathered, list(report.findings), symbol),
    }
    # One pass: what was put in is not looked at again.
    return re.sub(r"@@([A-Z]+)@@", lambda found: parts[found[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return resources.files("gdbext.report").joinpath("page", name).read_text("utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _text(value: object) -> str:
    return escape(printable(str(value)))


def _verdict(report: RunReport) -> str:
    errors = sum(finding.severity == "error" for finding in report.findings)
    parts = []
    if report.findings:
        count = len(report.findings)
        kind = "error" if errors else "warning"
        which = {0: "no error among them", count: "all errors" if count > 1 else "an error"}
        said = f"{count:,} finding{'s' * (count != 1)}, {which.get(errors, f'{errors:,} of them errors')}"
        parts.append(f'<p class="verdict {kind}">{said}</p>')
    else:
        said, clean = report.nothing_found
        parts.append(f'<p class="verdict {"clean" if clean else "warning"}">{said.capitalize()}.</p>')
    if report.incomplete is not None:
        parts.append(f'<p class="verdict warning">The recording is not whole: {_text(report.incomplete)}.</p>')
    return "".join(parts)


def _heads(shown: list[Finding], count: int) -> str:
    """What was found, in a line each, and the cause of the first: the page's answer, above everything else."""
    if not shown:
        return ""
    lines = [htmlfinding.head(number, finding) for number, finding in enumerate(shown[:HEADS], 1)]
    if count > HEADS:
        below = "below" if len(shown) == count else f"the first {len(shown):,} below"
        lines.append(f'<li class="quiet">and {count - HEADS:,} more, {below}</li>')
    return f'<ul class="heads">{"".join(lines)}</ul>'


def _facts(report: RunReport, header: Header, gathered: Gatherer) -> str:
    counts = report.counts
    qemu = report.qemu
    facts = [
        ("events", f"{gathered.events:,}"),
        ("entries", f"{counts.entries:,} ({counts.syscalls:,} system calls)"),
        ("exits", f"{counts.exits:,}, {counts.identical:,} resumed identical"),
        ("swapgs", f"{counts.swapgs:,}"),
        ("lost", f"{report.lost:,}"),
        ("time", duration(gathered.span)),
        ("source", report.source),
        ("QEMU", f"{qemu.version}, {qemu.accel}" if qemu is not None else "not known"),
        ("profile", header.profile or "none"),
    ]
    if header.started:
        facts.append(("recorded", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(header.started))))
    return "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts)


def _findings(report: RunReport, shown: list[Finding]) -> str:
    if not shown:
        return '<p class="quiet">There are none.</p>'
    articles = [htmlfinding.article(number, finding) for number, finding in enumerate(shown, 1)]
    left = len(report.findings) - len(shown)
    if left:
        said = f"{left:,} more are marked in the timeline alone; <code>ctxwatch replay</code> has all."
        articles.append(f'<p class="quiet">{said}</p>')
    return "".join(articles)


def _vectors(gathered: Gatherer) -> str:
    """A row a vector: how often, and how long its handlers took."""
    found = sorted(gathered.latencies.items(), key=lambda item: -item[1].entries)
    found = [(number, latency) for number, latency in found if latency.entries]
    if not found:
        return '<p class="quiet">No entry was seen.</p>'
    most = found[0][1].entries
    first, last = _range([latency for _, latency in found])
    rows = [_vector(number, latency, most, first, last) for number, latency in found]
    scale = f"{duration(bin_start(first))} to {duration(bin_start(last + 1))}"
    return (
        '<div class="scroll"><table class="vectors"><thead><tr><th scope="col">vector</th>'
        '<th scope="col" class="number">entries</th>'
        '<th scope="col" class="share"><span class="hidden">share</span></th>'
        '<th scope="col" class="number">median</th><th scope="col" class="number">99 %</th>'
        f'<th scope="col" class="number">longest</th><th scope="col">latency, {scale} (logarithmic)</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _range(latencies: list[Latency]) -> tuple[int, int]:
    """First and last bin that any of them uses, whole octaves."""
    used = [place for latency in latencies for place in latency.counts.nonzero()[0].tolist()]
    if not used:
        return 0, PER_OCTAVE - 1
    return min(used) // PER_OCTAVE * PER_OCTAVE, (max(used) // PER_OCTAVE + 1) * PER_OCTAVE - 1


def _vector(number: int, latency: Latency, most: int, first: int, last: int) -> str:
    name = _text(vectors.name(number))
    bar = max(_BAR * latency.entries / most, 1)
    times = [latency.quantile(0.5), latency.quantile(0.99), latency.longest] if latency.resumed else []
    cells = "".join(f'<td class="number">{duration(value)}</td>' for value in times) or '<td colspan="3"></td>'
    return (
        f'<tr><th scope="row">{name}</th><td class="number">{latency.entries:,}</td>'
        f'<td class="share"><svg class="bar" width="{_BAR}" height="10" aria-hidden="true">'
        f'<rect width="{bar:.1f}" height="10"/></svg></td>{cells}<td>{_spark(name, latency, first, last)}</td></tr>'
    )


def _spark(name: str, latency: Latency, first: int, last: int) -> str:
    """The histogram as bars, every bin that holds anything at least one pixel high."""
    if not latency.resumed:
        return ""
    width, height = _SPARK
    step = width / (last - first + 1)
    top = int(latency.counts.max())
    bars = []
    for place in latency.counts.nonzero()[0].tolist():
        tall = max(height * int(latency.counts[place]) / top, 1)
        at = f'x="{(place - first) * step:.1f}" y="{height - tall:.1f}"'
        bars.append(f'<rect {at} width="{max(step - 0.5, 0.5):.1f}" height="{tall:.1f}"/>')
    label = f"latencies of {name}: {latency.resumed} handlers"
    return (
        f'<svg class="spark" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{label}"><path d="M0 {height - 0.5}H{width}"/>{"".join(bars)}</svg>'
    )
