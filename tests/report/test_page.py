"""``ctxwatch report``: what the page holds, without a browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import RenderableType

from gdbext.cli.main import main
from gdbext.events.row import Kind
from gdbext.report import gather, html, htmlfinding
from gdbext.report.document import RunReport
from gdbext.report.gather import PER_OCTAVE, Gatherer, Latency, bin_start
from gdbext.report.payload import column, embeddable
from gdbext.report.text import console, render_finding, render_summary
from gdbext.report.timeline import Slice, Timeline
from gdbext.rules.engine import Counts
from gdbext.rules.finding import CodeLine, Difference, Finding, Place, Step, Writer
from tests.recording.sessions import busy, cuts
from tests.report import pages


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """The text of a page, and the codes of its findings."""
    path, codes = pages.make(tmp_path_factory.mktemp("page"))
    return path.read_text("utf-8"), codes


def shown(renderable: RenderableType) -> str:
    """What a terminal shows."""
    terminal = console()
    with terminal.capture() as said:
        terminal.print(renderable)
    return said.get()


class Tags(HTMLParser):
    """The elements of a page, with their attributes, and whether they nest."""

    VOID = frozenset({"meta", "link", "br", "path", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def tags(text: str) -> Tags:
    parser = Tags()
    parser.feed(text)
    parser.close()
    return parser


def test_the_page_is_well_formed_and_asks_for_nothing(page: tuple[str, list[str]]) -> None:
    parser = tags(page[0])
    assert parser.open == []
    for tag, attributes in parser.found:
        assert not {"src", "style", "srcset", "action"} & attributes.keys(), tag
        assert (attributes.get("href") or "#").startswith("#"), tag
        assert not any(name.startswith("on") for name in attributes), tag
    assert [tag for tag, _ in parser.found].count("script") == 2
    [policy] = [a["content"] for tag, a in parser.found if tag == "meta" and "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")


def test_every_finding_can_be_read_without_the_script(page: tuple[str, list[str]]) -> None:
    text, codes = page
    articles = re.findall(r'<details class="finding \w+" id="finding-\d+".*?</details>', text, re.DOTALL)
    assert [pages.words(article).split()[0] for article in articles] == codes
    for article in articles:
        read = pages.words(article)
        for heading in ("interrupted", "seen at", "Look at", "Contexts"):
            assert heading in read
        assert re.search(r"<tr class=\"?differs\"?>", article)
    assert f"{len(codes)} findings, all errors" in pages.words(text)


def test_nothing_of_the_guest_is_markup(page: tuple[str, list[str]]) -> None:
    text, _ = page
    assert "owned" in text
    assert "<img" not in text
    assert text.count("<!--") == 0
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\x1b[2J" in pages.words(text)


def test_a_finding_with_everything_in_it() -> None:
    evil = "<i>\x1b&"
    finding = Finding(
        code="CW402", event=5, cpu=1, vector=32, interrupted=Place(0xFFFFFFFF80001000, evil, 0), pc=0x2000, cause=evil,
        look_at=evil, thread=evil, slot=evil, writer=Writer(0x3000, evil, 4, 1, evil), pc_symbol=evil, handler=0x4000,
        entry=3, match="thread", differences=(Difference("frame", 1, 2),),
        table=(("rip", 1, 2, "rsp"), ("rax", 7, 7, None), (evil, None, 3, evil)),
        steps=(Step(3, 0, evil, 0x10, evil), Step(5, 2500, "iret resumes it", 0x20, None)),
        guilty_code=(CodeLine(0x1FFE, "push rax"), CodeLine(0x2000, evil)),
        interrupted_code=(CodeLine(0xFFFFFFFF80001000, "nop"),),
    )  # fmt: skip
    text = htmlfinding.article(7, finding)
    assert tags(text).open == []
    assert "<i>" not in text
    assert "\x1b" not in text
    read = " ".join(pages.words(text).split())
    for part in (
        "last written at", ", event 4 on CPU 1, for", "the last entry of the same thread", "kernel code",
        "Save area slot holds un-shifted", "rip 0x1 0x2 rsp", "rax 0x7 0x7", "? 0x3",
        "From save to resume +0 ns event 3", "+2.500 µs event 5 iret",
        "Where it was seen 1ffe push rax", "What was interrupted ffffffff80001000 nop",
    ):  # fmt: skip
        assert part in read
    assert len(re.findall('<tr class="?differs', text)) == 5  # the frame, two slots, two instructions


def test_a_save_area_of_32_bits_is_named_as_its_registers_are() -> None:
    finding = Finding(
        code="CW402", event=5, cpu=0, vector=32, interrupted=Place(0xC0001000, None, 0), pc=0xC0002000, cause="shifted",
        look_at="it", bits=32, slot="slot rip", table=(("rip", 1, 2, "rsp"), ("rax", 7, 7, None)),
    )  # fmt: skip
    finding.differences = (Difference("rflags", 2, 6), Difference("cs", 8, 9))
    finding.name_registers()
    assert "eflags,cs once" in " ".join(pages.words(htmlfinding.head(1, finding)).split())
    assert "eflags,cs" in shown(render_summary(RunReport("g", "probe", findings=[finding])))
    for read in (pages.words(htmlfinding.article(1, finding)), shown(render_finding(finding))):
        assert re.search(r"eip\s+0x1\s+0x2\s+esp", read)
        assert re.search(r"eax\s+0x7\s+0x7\s", read)
        assert not re.search(r"\b(rip|rflags)\b", read)


def test_where_the_machine_died_is_no_address() -> None:
    finding = Finding(
        code="CW901", event=5, cpu=0, vector=32, interrupted=Place(0x1000, None, 0), pc=0, cause="reset", look_at="it"
    )
    for read in (pages.words(htmlfinding.article(1, finding)), shown(render_finding(finding))):
        assert "0x1000" in read
        assert "seen at" not in read


def test_what_is_drawn_is_what_happened(page: tuple[str, list[str]]) -> None:
    document = pages.data(page[0])
    rows, timeline = busy(300), Timeline()
    slices: list[Slice] = []
    for part in [*cuts(rows, 100)]:
        slices += timeline.feed(part)[0]
    slices += timeline.finish()[0]
    start = int(rows["time"][0])
    assert document["span"] == int(rows["time"].max()) - start
    for lane in document["cpus"]:
        mine = sorted((s for s in slices if s.cpu == lane["cpu"]), key=lambda s: (s.start, -s.end))
        assert lane["start"].tolist() == [s.start - start for s in mine]
        assert lane["length"].tolist() == [s.end - s.start for s in mine]
        assert lane["event"].tolist() == [s.event for s in mine]
        assert lane["until"].tolist() == [s.until for s in mine]
        high, low = lane["high"].astype(np.uint64), lane["low"].astype(np.uint64)
        assert ((high << np.uint64(32)) | low)[lane["place"]].tolist() == [s.rip for s in mine]
        entries = (rows["kind"] == Kind.ENTRY) & (rows["cpu"] == lane["cpu"])
        assert sum(int(bins.sum()) for bins in lane["bins"]) == int(entries.sum())
        assert set(lane["gsState"].tolist()) <= {0, 1, 2}
    assert [finding["cpu"] for finding in document["findings"]]


def test_a_long_session_keeps_the_surroundings_of_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "DETAIL", 200)
    rows = busy(4000)
    gathered = Gatherer()
    parts = cuts(rows, 200)
    for number, part in enumerate(parts):
        gathered.feed(part, number == 60)
    gathered.finish()
    lanes = gathered.lanes().values()
    kept = sum(len(lane.handlers["start"]) for lane in lanes)
    entries = int((rows["kind"] == Kind.ENTRY).sum())
    assert 200 < kept < 600
    assert sum(int(lane.bins.sum()) for lane in lanes) == entries
    assert [latency.entries for _, latency in sorted(gathered.latencies.items())] == np.unique(
        rows["vector"][rows["kind"] == Kind.ENTRY], return_counts=True
    )[1].tolist()
    finding = int(parts[60]["time"][50]) - gathered.start
    assert len(gathered.gaps) == 2
    assert gathered.gaps[0][1] < finding < gathered.gaps[1][0]
    assert gathered.gaps[-1][1] == gathered.span


def test_bins_grow_with_the_session() -> None:
    gathered = Gatherer()
    for part in cuts(busy(400), 50):
        gathered.feed(part, False)
    assert gather.BINS // 2 * gathered.bin_width <= gathered.span < gather.BINS * gathered.bin_width
    assert gathered.bin_width > 1024


def test_latencies() -> None:
    latency = Latency(entries=100)
    for took in [1000] * 98 + [50_000] * 2:
        latency.counts[int(np.log2(took) * PER_OCTAVE)] += 1
    latency.longest = 50_000
    assert latency.resumed == 100
    assert 1000 <= latency.quantile(0.5) <= 1000 * 2 ** (1 / PER_OCTAVE)
    assert 45_000 <= latency.quantile(0.99) <= 50_000
    assert bin_start(4 * PER_OCTAVE) == 16
    assert Latency().quantile(0.5) == 0


@pytest.mark.parametrize("top", [0, 255, 256, 70_000, 1 << 33, 1 << 50])
def test_columns_hold_what_was_put_in(top: int) -> None:
    values = np.array([0, 1, top, top], np.int64)
    assert pages.column(column(values)).tolist() == values.tolist()
    assert pages.column(column(np.sort(values), delta=True)).tolist() == sorted(values.tolist())


def test_json_inside_a_script_element() -> None:
    assert embeddable(["</script>", "<!--", "a&b"]) == '["\\u003c/script\\u003e","\\u003c!--","a\\u0026b"]'


def test_more_findings_than_a_page_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "FINDINGS", 1)
    path, codes = pages.make(tmp_path)
    text = path.read_text("utf-8")
    assert text.count('<details class="finding') == 1
    assert f"{len(codes) - 1} more are marked in the timeline alone" in pages.words(text)
    assert f"and {len(codes) - html.HEADS} more, the first 1 below" in pages.words(text)
    assert [marker["id"] for marker in pages.data(text)["findings"]] == [*range(1, len(codes) + 1)]


def test_a_recording_that_is_not_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages.record(tmp_path / "r", busy(100, bugs=False))
    data = (tmp_path / "r").read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) * 2 // 3])
    assert main(["report", str(tmp_path / "cut")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "is not whole" in err
    read = pages.words((tmp_path / "cut.html").read_text("utf-8"))
    assert "Nothing found in the part that could be read" in read
    assert "The recording is not whole" in read


def test_outputs_and_inputs_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages.record(tmp_path / "r", busy(5))
    for words in (["report", "r", "-o", "r"], ["report", "r", "-o", "none/x"], ["report", "none"], ["report", "."]):
        assert main([word if word in ("report", "-o") else str(tmp_path / word) for word in words]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r"]


def test_a_session_without_events(tmp_path: Path) -> None:
    path, codes = pages.make(tmp_path, busy(5)[:0])
    assert codes == []
    read = pages.words(path.read_text("utf-8"))
    assert "Nothing found: no interrupt, exception or system call was seen." in read
    assert "No entry was seen." in read


@pytest.mark.parametrize(
    ("lost", "said", "kind"),
    [
        (0, "Nothing found.", "clean"),
        (1, "Nothing found, but 1 event was lost.", "warning"),
        (3000, "Nothing found, but 3,000 events were lost.", "warning"),
    ],
)
def test_lost_events_leave_a_doubt(lost: int, said: str, kind: str) -> None:
    report = RunReport("g", "probe", counts=Counts(5, 5, 1, 0, 4, 0), lost=lost)
    assert html._verdict(report) == f'<p class="verdict {kind}">{said}</p>'


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("rbx did not survive", "rbx did not survive"),
        ("sysret loads RIP 0x8", "sysret loads RIP 0x8"),
        ("the exit path never loads it", "The exit path never loads it"),
        ("system calls are not among them", "System calls are not among them"),
    ],
)
def test_names_keep_their_letters_where_a_sentence_begins_with_them(said: str, shown: str) -> None:
    assert htmlfinding._capital(said) == shown
