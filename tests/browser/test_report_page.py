"""The report page in a real browser: silent, offline, readable in both themes, and usable by pointer and keyboard."""

import pytest

from circuits.report.canvas.encode import decode_pattern
from circuits.report.html import render_html
from circuits.report.schema import sealed
from tests.browser.chromium import Page, chromium, require_chromium
from tests.security.test_report_injection import PAYLOADS
from tests.unit.report_factory import (
    empty_report,
    many_heads_report,
    other_circuit_report,
    sequence,
    solved_report,
    targets,
)

pytestmark = pytest.mark.browser
KINDS = {"solved": solved_report, "many": many_heads_report, "other": other_circuit_report, "empty": empty_report}
GRID = "window.reportGrid.state()"
CONTRAST = """
(() => {
  const rgb = (text) => {
    const parts = (text.match(/[\\d.]+(e-?\\d+)?/g) || []).map(Number);
    return text.startsWith("color(") ? parts.map((v, i) => (i < 3 ? v * 255 : v)) : parts;
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (let up = node; up; up = up.parentElement) {
      const found = rgb(getComputedStyle(up).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.textContent.trim();
    const node = walk.currentNode.parentElement;
    const skipped = node.closest("script, noscript, title, desc, .answer-text, .ag-hidden");
    if (!text || skipped || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const ink = rgb(node instanceof SVGElement ? style.fill : style.color);
    const got = ratio(ink, ground(node instanceof SVGElement ? node.ownerSVGElement.parentElement : node));
    if (got < 4.5) found.push([text.slice(0, 30), node.className.baseVal || node.className, got.toFixed(2)]);
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    require_chromium()
    with chromium(tmp_path_factory.mktemp("profile")) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pages")
    for name, make in KINDS.items():
        (place / f"{name}.html").write_text(render_html(sealed(make())), encoding="utf-8")
    return place


@pytest.fixture
def page(browser):
    tab = Page(browser)
    tab.view()
    yield tab
    tab.close()


@pytest.mark.parametrize("name", KINDS)
def test_a_page_asks_for_nothing_and_says_nothing(page, folder, name):
    address = (folder / f"{name}.html").as_uri()
    page.goto(address)
    page.screenshot(full=True)
    assert page.requests() == [address]
    assert page.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", KINDS)
def test_every_text_has_enough_contrast_in_both_themes(page, folder, name, scheme):
    page.view(scheme=scheme)
    page.goto((folder / f"{name}.html").as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate(CONTRAST) == []


def test_the_theme_button_turns_page_and_grid(page, folder):
    page.goto((folder / "solved.html").as_uri())
    ground = "getComputedStyle(document.body).backgroundColor"
    corner = "[...document.querySelector('.ag-ramp').getContext('2d').getImageData(0, 0, 1, 1).data].slice(0, 3)"
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    assert min(page.evaluate(corner)) > 230
    page.evaluate("document.getElementById('theme').click()")
    page.settle()
    assert page.evaluate(ground) == "rgb(16, 21, 28)"
    assert max(page.evaluate(corner)) < 60
    assert page.evaluate("document.getElementById('theme').textContent") == "Light theme"


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("name", ["solved", "many"])
def test_no_page_is_wider_than_its_window(page, folder, name, width):
    page.view(width=width)
    page.goto((folder / f"{name}.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def cell(page, q, k):
    """Centre of a cell of the enlarged head in window coordinates."""
    page.evaluate("document.querySelector('.ag-plot').scrollIntoView({block: 'center'})")
    page.settle()
    n = len(
        page.evaluate("JSON.parse(document.getElementById('report-data').textContent).attention.examples[0].tokens")
    )
    box = page.evaluate("(({x, y, width, height}) => ({x, y, width, height}))"
                        "(document.querySelector('.ag-plot').getBoundingClientRect())")  # fmt: skip
    size = page.evaluate("(() => { const e = JSON.parse(document.getElementById('report-data').textContent)"
                         ".attention.examples[0].tokens; const z = document.querySelector('.ag-zoom').clientWidth;"
                         " return AttnDraw.layout(z, e, e); })()")  # fmt: skip
    assert box["width"] == size["left"] + size["cell"] * n + 8
    return box["x"] + size["left"] + (k + 0.5) * size["cell"], box["y"] + size["top"] + (q + 0.5) * size["cell"]


def readout(page):
    """Text of the four lines beside the grid."""
    return page.evaluate("[...document.querySelectorAll('.ag-read dd')].map((one) => one.textContent)")


def test_hover_shows_query_key_and_the_stored_value(page, folder):
    page.goto((folder / "solved.html").as_uri())
    example = solved_report().attention.examples[0]
    n = len(example.tokens)
    last = decode_pattern(example.patterns[-1], (2, 1, n, n))
    for q, k in (targets(12)["reading"][4], (20, 2), (5, 5)):
        page.hover(*cell(page, q, k))
        shown = readout(page)
        assert shown[0] == f"{sequence(12)[q]} (position {q})"
        assert shown[1] == f"{sequence(12)[k]} (position {k})"
        assert shown[2] == f"{last[1, 0, q, k]:.3f}"
    page.hover(*cell(page, *targets(12)["reading"][4]))
    assert readout(page)[3] == "reading"


def test_a_masked_cell_keeps_the_chosen_one(page, folder):
    page.goto((folder / "solved.html").as_uri())
    before = readout(page)
    page.hover(*cell(page, 3, 10))
    assert readout(page) == before


def test_the_slider_changes_the_picture_and_the_words(page, folder):
    page.goto((folder / "solved.html").as_uri())
    picture = "document.querySelector('.ag-head canvas').toDataURL()"
    late = page.evaluate(picture)
    page.evaluate("document.querySelector('.ag-slider').focus()")
    page.press("Home")
    assert page.evaluate(GRID)["step"] == 0
    assert page.evaluate(picture) != late
    assert (
        page.evaluate("document.querySelector('.ag-step').textContent")
        == "step 0, checkpoint 1 of 19, before emergence"
    )
    page.press("End")
    assert page.evaluate(picture) == late
    assert page.evaluate("document.querySelector('.ag-slider').getAttribute('aria-valuetext')").startswith("step 9,312")


def test_play_runs_from_the_first_checkpoint_and_stops_at_the_last(page, folder):
    page.goto((folder / "many.html").as_uri())
    page.evaluate("document.querySelector('.ag-play').click()")
    assert page.evaluate(GRID)["checkpoint"] == 0
    assert page.evaluate("document.querySelector('.ag-play').textContent") == "Pause"
    page.evaluate(
        "new Promise((done) => { const button = document.querySelector('.ag-play'); const look = () =>"
        " (button.textContent === 'Play' ? done(1) : requestAnimationFrame(look)); look(); })"
    )
    assert page.evaluate(GRID)["checkpoint"] == 6


def test_the_keyboard_moves_cells_checkpoints_and_heads(page, folder):
    page.goto((folder / "many.html").as_uri())
    start = page.evaluate(GRID)
    assert (start["layer"], start["head"]) == (1, 5)
    page.evaluate("document.querySelector('.ag-plot').focus()")
    for key in ("ArrowDown", "ArrowLeft", "["):
        page.press(key)
    now = page.evaluate(GRID)
    assert (now["q"], now["k"], now["checkpoint"]) == (start["q"] + 1, start["k"] - 1, start["checkpoint"] - 1)
    page.press("End")
    assert page.evaluate(GRID)["k"] == now["q"]
    assert page.evaluate("document.querySelector('.ag-hidden').textContent").startswith("L1.H5, step ")
    page.evaluate("document.querySelector('.ag-head[aria-pressed=true]').focus()")
    page.press("ArrowUp")
    page.press("ArrowLeft")
    now = page.evaluate(GRID)
    assert (now["layer"], now["head"]) == (0, 4)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Layer 0, head 4"


def test_every_control_has_a_name_and_a_visible_focus(page, folder):
    page.goto((folder / "solved.html").as_uri())
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, select, [tabindex], canvas')].filter((one) =>"
        " !(one.getAttribute('aria-label') || one.textContent.trim() || one.labels?.[0]?.textContent.trim()"
        " || one.getAttribute('aria-hidden'))).map((one) => one.outerHTML.slice(0, 80))"
    )
    assert unnamed == []
    page.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_choosing_another_sequence_redraws_at_its_own_size(page, folder):
    page.goto((folder / "solved.html").as_uri())
    page.evaluate("(() => { const s = document.querySelector('.ag-select'); s.value = '1';"
                  " s.dispatchEvent(new Event('change')); })()")  # fmt: skip
    assert page.evaluate("document.querySelector('.ag-head canvas').width") == 15
    assert page.evaluate(GRID)["example"] == 1


def test_printing_from_the_dark_theme_is_light_and_unfolded(page, folder, tmp_path):
    page.view(scheme="dark")
    page.goto((folder / "solved.html").as_uri())
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.view(scheme="dark", media="print")
    page.settle()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert (
        min(page.evaluate("[...document.querySelector('.ag-ramp').getContext('2d').getImageData(0, 0, 1, 1).data]"))
        > 230
    )
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.querySelectorAll('details[open]').length") == 0
    assert page.pdf(tmp_path / "report.pdf").startswith(b"%PDF")


def test_hostile_tokens_and_notes_run_nothing(page, tmp_path):
    report = solved_report(notes=PAYLOADS, claim=PAYLOADS[0], limits=PAYLOADS)
    example = report.attention.examples[0]
    tokens = [*PAYLOADS, *example.tokens][: len(example.tokens)]
    hostile = example.model_copy(update={"tokens": tokens, "label": PAYLOADS[1]})
    attention = report.attention.model_copy(update={"examples": [hostile]})
    path = tmp_path / "hostile.html"
    path.write_text(render_html(sealed(report.model_copy(update={"attention": attention}))), encoding="utf-8")
    page.send("Page.addScriptToEvaluateOnNewDocument", source="window.hits = []; window.alert = (v) => hits.push(v);")
    page.goto(path.as_uri())
    page.hover(*cell(page, 5, 2))
    assert readout(page)[1] == f"{tokens[2]} (position 2)"
    assert page.evaluate("window.hits") == []
    assert page.evaluate("document.querySelectorAll('img, iframe, object, embed, form, base, link').length") == 0
    assert page.requests() == [path.as_uri()]
    assert page.complaints() == []
