"""The page in a real browser: silent, harmless, searchable, and whole on a phone and on paper."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from melior.report import rounds
from melior.report.bakeoff import page
from melior.report.load import read_run
from melior.report.page import write_page, write_report
from tests.report import runs
from tests.report.test_bakeoff import made
from tests.report.test_rounds import made as rounds_folder

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs {CHROMIUM}")
VOID = {"br", "hr", "img", "input", "link", "meta"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    a, b = runs.finished(root / "simpo", n=60), runs.finished(root / "dpo", "dpo", gain=0.02, n=60)
    c = runs.failed(root / "hot")
    return {
        "one": write_report([a], root / "one.html"),
        "many": write_report([a, b, c], root / "many.html"),
        "failed": write_report([c], root / "failed.html"),
        "running": write_report([runs.running(root / "now")], root / "running.html"),
        "bakeoff": bakeoff(root, {"simpo": a, "dpo": b}),
        "rounds": write_rounds(root),
    }


def write_rounds(root):
    """The page of a run of three rounds."""
    rounds.present(rounds_folder(root), root / "rounds.html")
    return root / "rounds.html"


def bakeoff(root, folders):
    """The page of a bake-off whose arms left these runs."""
    outcome = replace(made({"simpo": 0.2, "dpo": 0.0}), folders=folders)
    place = root / "bakeoff.html"
    write_page(place, page(outcome, read_run(folders["simpo"], "bake-off")))
    return place


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, pages):
    """Open a page, and see at the end that it asked for nothing and complained of nothing."""
    requests, complaints, contexts = [], [], []

    def open_page(name, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(pages[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    foreign = [url for url in requests if not url.startswith(("file:", "data:"))]
    assert foreign == []
    assert {url for url in requests if url.startswith("file:")} <= {
        p.as_uri() for p in pages.values()
    }
    assert complaints == []


def visible(page) -> int:
    return page.locator(".sample:visible").count()


@pytest.mark.parametrize("name", ["one", "many", "failed", "running", "bakeoff", "rounds"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_overflows(visit, name, width):
    page = visit(name, viewport={"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    out = page.evaluate(
        """() => [...document.querySelectorAll('main *')]
            .filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 1)
            .map(e => e.outerHTML.slice(0, 90))"""
    )
    assert out == []


def test_the_verdict_comes_first(visit):
    assert visit("one").inner_text("h1") == "Better by 21 points (15 to 27), n = 100"
    many = visit("many")
    assert many.inner_text("h1") == "3 runs side by side"
    verdicts = many.locator(".verdict").all_inner_texts()
    assert verdicts[1:] == ["No gain shown: +2 points (−4 to 8), n = 100", "Failed after 37 steps"]


def test_a_bake_off_says_which_to_use_and_what_is_real(visit):
    shown = visit("bakeoff")
    assert shown.inner_text("h1") == "Use simpo: it is ahead of dpo"
    assert shown.inner_text("#duels .duel").startswith("simpo is ahead of dpo: constraints met +")
    assert shown.locator(".standings tbody tr").count() == 3, "two arms and the start model"
    assert shown.locator(".planes figure").count() == 2
    for link in shown.locator("nav .links a").all():
        assert shown.locator(str(link.get_attribute("href"))).count() == 1


def test_rounds_stand_side_by_side(visit):
    shown = visit("rounds")
    assert shown.locator("#rounds tbody tr").count() == 4, "the start and three rounds"
    assert shown.locator("#rounds figure").count() == 6
    answers = shown.locator(".sample").first.locator(".answer")
    assert answers.count() == 4, "before, and after each round"
    for link in shown.locator("nav .links a").all():
        assert shown.locator(str(link.get_attribute("href"))).count() == 1
    shown.locator("#rounds figure svg").first.hover()
    assert shown.locator("#rounds figure .readout").first.inner_text().startswith("round ")


def test_what_was_done_to_which_data_is_said(visit):
    said = visit("one").inner_text("#data")
    assert "300 rows" in said and "pairs.jsonl" in said
    assert "Equal answers rows have equal answers" in said and "3 rows, 1%" in said
    assert "Too long: 1 row left out, 2 rows cut." in said
    assert "The data check found nothing." in said
    assert "arXiv:2405.14734" in visit("one").inner_text("#origin")
    differing = visit("many").inner_text("#differences")
    assert "optim.learning_rate" in differing and "seed" not in differing


def test_samples_neither_run_nor_break_the_page(visit):
    page = visit("one")
    assert page.evaluate("window.broken") is None
    assert page.locator("main img, main script").count() == 0
    assert runs.HOSTILE in page.locator(".sample").first.inner_text()
    assert page.locator("footer").count() == 1


def test_search_filters_samples(visit):
    page = visit("one")
    assert visible(page) == 20
    assert page.inner_text(".found") == "60 of 60"
    page.fill(".tools input", "KÄSE")
    assert 0 < visible(page) < 20
    assert all("Käse" in text for text in page.locator(".sample:visible").all_inner_texts())
    assert page.evaluate("CSS.highlights.get('found').size") == visible(page)
    page.fill(".tools input", "no such words anywhere")
    assert visible(page) == 0
    assert page.is_visible("text=No sample matches.")
    page.fill(".tools input", "")
    page.click(".more")
    assert visible(page) == 60


def test_filters_and_order(visit):
    page = visit("one")
    page.click("text=Worse")
    assert 0 < visible(page) < 20
    assert all("▼" in text for text in page.locator(".sample:visible").all_inner_texts())
    page.click("text=All >> nth=0")
    page.click(".segments button[data-filter=all]")
    page.select_option(".tools select", "gain")
    gains = page.eval_on_selector_all(".sample", "all => all.map(s => +s.dataset.gain)")
    assert gains == sorted(gains, reverse=True)
    page.select_option(".tools select", "file")
    assert runs.HOSTILE in page.locator(".sample").first.inner_text()


def test_long_answers_unfold(visit):
    page = visit("one")
    sample = page.locator(".sample").nth(1)
    answer = sample.locator(".after .text")
    folded = answer.bounding_box()["height"]
    sample.locator("text=Show all").click()
    assert answer.bounding_box()["height"] > 3 * folded
    assert "more characters in samples.jsonl" in answer.inner_text()


def test_dark_follows_the_system_until_the_reader_decides(visit):
    def paper(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    page = visit("one", color_scheme="dark")
    dark = paper(page)
    page.click("#theme")
    light = paper(page)
    assert dark != light == paper(visit("one", color_scheme="light"))
    page.reload()
    assert paper(page) == light


CONTRAST = """() => {
  const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const e of document.querySelectorAll('body *')) {
    const says = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!says || !e.checkVisibility() || e.closest('script, style, option')) continue;
    const style = getComputedStyle(e), svg = e.ownerSVGElement;
    const [a, b] = [luminance(rgb(svg ? style.fill : style.color)), luminance(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${e.tagName}.${e.className} ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["one", "many", "failed"])
def test_text_has_contrast(visit, name, scheme):
    assert visit(name, color_scheme=scheme).evaluate(CONTRAST) == []


def test_everything_that_acts_has_a_name_and_takes_the_keyboard(visit):
    page = visit("many")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, svg[role=img], [tabindex]')]
            .filter(e => !(e.textContent.trim() || e.ariaLabel || e.getAttribute('aria-label')))
            .map(e => e.outerHTML.slice(0, 90))"""
    )
    assert nameless == []
    chart = page.locator(".chart svg[tabindex]").first
    chart.focus()
    page.keyboard.press("End")
    assert page.locator(".readout").first.inner_text().startswith("step 180\n")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".readout").first.inner_text().startswith("step 175\n")
    page.keyboard.press("Escape")
    assert page.locator(".readout").first.inner_text() == ""


def test_charts_read_out_the_nearest_step(visit):
    page = visit("one")
    chart = page.locator(".chart svg[tabindex]").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2)
    said = page.locator(".readout").first.inner_text()
    assert re.match(r"step \d+\ntraining 0\.\d+", said)


def test_the_command_is_copied(browser, visit, pages):
    page = visit("one", permissions=["clipboard-read", "clipboard-write"])
    page.click(".copy")
    page.wait_for_selector("text=Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("melior simpo --model smollm2")
    assert copied == page.inner_text(".command code")


def test_print_shows_long_samples_whole(visit, tmp_path):
    page = visit("one", color_scheme="dark")
    page.emulate_media(media="print")
    long = page.locator(".sample").nth(1).locator(".after .text")
    assert long.evaluate("e => e.scrollHeight - e.clientHeight") <= 1
    assert not page.is_visible("nav")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").stat().st_size > 20_000


class Outline(HTMLParser):
    """Sees that elements close in order and that ids are unique."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.references = [], [], []

    def handle_starttag(self, name, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.references += [found[key] for key in ("src", "href", "action", "data") if key in found]
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name


@pytest.mark.parametrize("name", ["one", "many", "failed", "running"])
def test_markup_is_well_formed_and_fetches_nothing(pages, name):
    content = pages[name].read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(content)
    outline.close()
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    targets = {reference[1:] for reference in outline.references if reference.startswith("#")}
    assert targets <= set(outline.ids)
    assert all(reference.startswith(("#", "data:")) for reference in outline.references)
    assert "@import" not in content
    assert not re.search(r"url\(", content)


def test_size_stays_bounded(tmp_path):
    folder = runs.finished(tmp_path / "big", steps=3000, n=50)
    rows = runs.samples(800, 0.3, 1)
    rows[5]["before"] = "x" * 3_000_000
    lines = [json.dumps(row) for row in rows]
    (folder / "samples.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert write_report([folder]).stat().st_size < 1_500_000
    assert "The first 400 of 800" in (folder / "report.html").read_text(encoding="utf-8")
