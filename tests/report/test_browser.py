"""The page in a real browser: no error, findings listed, zoom works, a hostile guest's strings do nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gdbext.cli.main import main
from tests.recording.repeat import repeat
from tests.recording.sessions import busy
from tests.report import pages
from tests.report.browser import Page, browser, chromium

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium here (Debian: chromium)")


@pytest.fixture(scope="module")
def shown() -> Iterator[Page]:
    """One browser for all tests."""
    with browser() as page:
        yield page


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A page with findings, and their codes."""
    return pages.make(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a session of a million events."""
    directory = tmp_path_factory.mktemp("million")
    pages.record(directory / "short", busy(3000))
    assert repeat(directory / "short", directory / "long", 1_000_000) >= 1_000_000
    assert main(["report", str(directory / "long"), "-o", str(directory / "long.html")]) == 0
    return directory / "long.html"


@pytest.fixture
def page(shown: Page, made: tuple[Path, list[str]]) -> Page:
    """The page as it is when it was just opened."""
    shown.said.clear()
    shown.requests.clear()
    shown.open(made[0])
    return shown


def view(page: Page) -> tuple[float, float]:
    """What the timeline shows, nanoseconds."""
    page.value("new Promise(requestAnimationFrame).then(() => new Promise(requestAnimationFrame)).then(() => true)")
    start, end = page.value("(d => [+d.from, +d.to])(document.getElementById('canvas').dataset)")
    return start, end


def readout(page: Page) -> str:
    return str(page.value("document.getElementById('readout').textContent"))


def test_no_error_no_request_and_the_findings(page: Page, made: tuple[Path, list[str]]) -> None:
    path, codes = made
    listed = page.value("[...document.querySelectorAll('.finding .code')].map(e => e.textContent)")
    assert listed == codes
    assert page.value("document.querySelector('.finding').open") is True
    assert page.requests == [path.resolve().as_uri()]
    assert page.said == []


def test_strings_of_the_guest_do_nothing(page: Page) -> None:
    assert page.value("document.title").startswith("guest </script><script>document.title=")
    assert page.value("document.querySelectorAll('img, script').length") == 2
    page.value("document.getElementById('canvas').focus()")
    page.key(".")
    assert "</script><script>" in readout(page)
    page.value(
        "(e => { e.textContent = 'document.title = 1'; document.body.append(e); })(document.createElement('script'))"
    )
    assert page.value("document.title").startswith("guest ")
    assert len(page.said) == 1
    assert "Content Security Policy" in page.said[0]


def test_zoom_and_move_by_keys(page: Page) -> None:
    whole = view(page)
    page.value("document.getElementById('canvas').focus()")
    page.key("+")
    near = view(page)
    assert near[1] - near[0] == pytest.approx((whole[1] - whole[0]) / 2)
    page.key("ArrowRight")
    moved = view(page)
    assert moved[0] > near[0]
    assert moved[1] - moved[0] == pytest.approx(near[1] - near[0])
    page.key("-")
    page.key("0")
    assert view(page) == whole
    assert page.said == []


def test_findings_and_handlers_by_keys(page: Page, made: tuple[Path, list[str]]) -> None:
    page.value("document.getElementById('canvas').focus()")
    page.key("n")
    assert readout(page).startswith(f"Finding 1 of {len(made[1])}, {made[1][0]} ")
    here = view(page)
    page.key("n")
    assert readout(page).startswith("Finding 2 of ")
    assert view(page) != here
    page.key("Enter")
    assert page.value("document.activeElement.closest('details').id") == "finding-2"
    assert page.value("document.getElementById('finding-2').open") is True
    page.value("document.getElementById('canvas').focus()")
    page.key(".")
    first = readout(page)
    page.key(".")
    assert readout(page) != first
    assert readout(page).startswith("CPU 1, ")
    page.key("ArrowUp")
    assert readout(page) == "CPU 0"
    page.key("ArrowDown")
    assert readout(page) == "CPU 1"


def test_all_that_a_mouse_can_press_can_be_reached_by_tab(page: Page) -> None:
    page.value("document.activeElement.blur()")
    reached = set()
    for _ in range(30):
        page.key("Tab")
        reached.add(page.value("(e => e.id || e.dataset.do || e.className || e.tagName)(document.activeElement)"))
    assert reached >= {"theme", "in", "out", "all", "previous", "next", "canvas", "show", "SUMMARY"}


def test_the_findings_are_named_first_and_their_links_open_them(page: Page, made: tuple[Path, list[str]]) -> None:
    named = page.value("[...document.querySelectorAll('.heads a')].map(e => e.textContent.split(' ')[0])")
    assert named == made[1][:3]
    assert page.value("document.querySelector('.heads').getBoundingClientRect().bottom < innerHeight / 2")
    page.value("document.querySelectorAll('.heads a')[1].focus()")
    page.key("Enter")
    assert page.value("document.activeElement.closest('details').id") == "finding-2"
    assert page.value("document.getElementById('finding-2').open") is True


def test_on_a_narrow_page_both_contexts_and_the_code_are_seen_whole(shown: Page, made: tuple[Path, list[str]]) -> None:
    shown.open(made[0], 400)
    shown.value("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    cells = "[...document.querySelectorAll('.context tr.differs td')]"
    assert shown.value(f"{cells}.length > 0 && {cells}.every(e => e.scrollWidth <= e.clientWidth)")
    assert shown.value(f"{cells}.every(e => e.getBoundingClientRect().right <= 400)")
    longest = "mov qword ptr [rip + 0x12345678], 0x12345678"
    shown.value(f"document.querySelectorAll('.asm td:last-child').forEach(e => {{ e.textContent = '{longest}'; }})")
    code = "[...document.querySelectorAll('.scroll')].filter(e => e.querySelector('.asm'))"
    assert shown.value(f"{code}.length > 0 && {code}.every(e => e.scrollWidth <= e.clientWidth)")


def test_a_step_that_takes_two_lines_goes_on_below_its_text(shown: Page, made: tuple[Path, list[str]]) -> None:
    shown.open(made[0], 1000)
    shown.value("document.querySelectorAll('.steps').forEach(e => { e.style.width = '18rem'; })")
    left = "(e => [...e.getClientRects()].map(r => r.left))(document.querySelector('.steps li > .quiet:last-child'))"
    lefts = shown.value(left)
    first = shown.value("document.querySelector('.steps li > .quiet').getBoundingClientRect().left")
    assert len(lefts) > 1
    assert abs(min(lefts) - first) < 2


def test_buttons(page: Page) -> None:
    whole = view(page)
    page.value("document.querySelector('[data-do=in]').click()")
    assert view(page) != whole
    page.value("document.querySelector('[data-do=all]').click()")
    assert view(page) == whole
    page.value("document.querySelector('button.show').click()")
    assert readout(page).startswith("Finding 1 of ")
    assert page.value("document.activeElement.id") == "canvas"


def test_light_and_dark(page: Page, made: tuple[Path, list[str]]) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.value(ground)
    page.open(made[0], dark=True)
    dark = page.value(ground)
    assert dark != light
    page.value("document.getElementById('theme').click()")
    assert page.value("document.getElementById('theme').textContent") == "Theme: light"
    assert page.value(ground) == light
    page.value("document.getElementById('theme').click()")
    assert page.value(ground) == dark
    page.value("document.getElementById('theme').click()")


@pytest.mark.parametrize("width", [400, 700, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits(shown: Page, made: tuple[Path, list[str]], width: int, dark: bool, tmp_path: Path) -> None:
    shown.open(made[0], width, dark=dark)
    shown.value("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    assert shown.value("document.documentElement.scrollWidth") <= width
    drawn = "(c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size)"
    assert shown.value(f"{drawn}(document.getElementById('canvas'))") > 10
    shown.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_without_javascript(shown: Page, made: tuple[Path, list[str]]) -> None:
    shown.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        shown.call("Page.navigate", url=made[0].resolve().as_uri())
        shown.wait("document.readyState === 'complete' && document.querySelectorAll('.finding').length > 0")
        assert "needs JavaScript" in shown.value("document.querySelector('noscript').innerText")
        assert shown.value("document.getElementById('timeline').hidden") is True
        assert "Look at" in shown.value("document.querySelector('.finding').innerText")
    finally:
        shown.call("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_a_million_events_stay_usable(shown: Page, million: Path, dark: bool, tmp_path: Path) -> None:
    """By the browser's own clock, with room for a machine that does something else, too."""
    shown.said.clear()
    shown.open(million, dark=dark)
    ready = shown.value("performance.now()") / 1000
    whole = view(shown)
    shown.value("document.getElementById('canvas').focus()")
    answers = []
    for key in ("+", "+", "ArrowRight", "n", ".", "-", "0"):
        began = shown.value("performance.now()")
        shown.key(key)
        answers.append((shown.value("performance.now()") - began) / 1000)
    print(f"ready after {ready:.1f} s, keys answered after {', '.join(f'{each:.2f}' for each in answers)} s")
    assert view(shown) == whole
    assert readout(shown)
    assert (ready < 20, max(answers) < 2) == (True, True), (ready, answers)
    assert shown.said == []
    shown.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000
