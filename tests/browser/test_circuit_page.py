"""The page and the drawing of a circuit in a real browser: silent, offline, readable in both themes."""

import pytest

from circuits.report.circuit_page import Background, render_circuit_page
from circuits.report.circuit_svg import circuit_svg
from circuits.trajectory import trajectory
from tests.browser.chromium import Page, chromium, require_chromium
from tests.browser.test_report_page import CONTRAST
from tests.unit.small_circuits import circuit, discovery, placed, shape

pytestmark = pytest.mark.browser
EDGES = {"embed->L0.H1.k": 1.0, "L0.H1->M1": -2.0, "M1->logits": 3.0}
COLOUR = "getComputedStyle(document.querySelector('{}')).{}"
LOOKS = [
    (".up .wire", "stroke"),
    (".down .wire", "stroke"),
    (".frame", "fill"),
    (".frame", "stroke"),
    (".name", "fill"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("circuits")
    steps, found = [64, 128], [discovery(circuit(edges={"embed->M0": 1.0})), discovery(circuit(edges=EDGES))]
    around = Background(list(zip(steps, found, strict=True)), trajectory(steps, found), [("again", "interp circuit x")])
    (place / "page.html").write_text(render_circuit_page(found[-1], "x", 128, around), encoding="utf-8")
    by_place = placed({("embed->L0.H0.k", 1, 3): 1.0, ("L0.H0->logits", 3, 3): -2.0})
    (place / "positions.html").write_text(render_circuit_page(discovery(by_place), "x", 128), encoding="utf-8")
    (place / "figure.svg").write_text(circuit_svg(circuit(shape(heads=4, kv=2))), encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    require_chromium()
    with chromium(tmp_path_factory.mktemp("profile")) as pipe:
        yield pipe


@pytest.mark.parametrize("name", ["page.html", "positions.html", "figure.svg"])
def test_files_ask_for_nothing_say_nothing_and_follow_the_theme(browser, folder, name):
    looks = {}
    for scheme in ("light", "dark"):
        tab = Page(browser)
        tab.view(scheme=scheme)
        tab.goto((folder / name).as_uri())
        assert tab.requests() == [(folder / name).as_uri()]
        assert tab.complaints() == []
        looks[scheme] = [
            tab.evaluate(COLOUR.format(f".circuit-graph {one}", what))
            for one, what in LOOKS
            if name != "positions.html" or one != ".name"
        ]
        assert looks[scheme][0] != looks[scheme][1]
        tab.close()
    assert all(light != dark for light, dark in zip(looks["light"], looks["dark"], strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["page.html", "positions.html"])
def test_every_word_has_contrast_and_nothing_overflows(browser, folder, name, scheme):
    for width in (1280, 390):
        tab = Page(browser)
        tab.view(width, 900, scheme)
        tab.goto((folder / name).as_uri())
        assert tab.evaluate(CONTRAST) == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        tab.close()


def test_pointing_at_an_edge_finds_the_edge_and_its_words(browser, folder):
    tab = Page(browser)
    tab.view(1280, 900)
    tab.goto((folder / "page.html").as_uri())
    place = tab.evaluate(
        "(() => { const e = document.querySelector('[data-edge=\"M1->logits\"] .hit');"
        " e.scrollIntoView({block: 'center'}); const p = e.getPointAtLength(e.getTotalLength() / 2);"
        " const m = e.getScreenCTM(); return [p.x * m.a + m.e, p.y * m.d + m.f]; })()"
    )
    found = tab.evaluate(
        f"document.elementFromPoint({place[0]}, {place[1]}).closest('[data-edge]').querySelector('title').textContent"
    )
    assert found.startswith("M1->logits\nrank score 3\n")
    tab.close()


def test_variables_of_the_page_around_colour_the_drawing(browser, folder, tmp_path):
    text = circuit_svg(circuit(edges=EDGES))
    style = "<style>:root{--circuit-up: rgb(1, 2, 3); --st-text-color: rgb(4, 5, 6)}</style>"
    (tmp_path / "around.html").write_text(f"<!doctype html><title>x</title>{style}{text}", encoding="utf-8")
    tab = Page(browser)
    tab.goto((tmp_path / "around.html").as_uri())
    assert tab.evaluate(COLOUR.format(".up .wire", "stroke")) == "rgb(1, 2, 3)"
    assert tab.evaluate(COLOUR.format(".node .frame", "stroke")) == "rgb(4, 5, 6)"
    tab.close()


def test_a_wide_drawing_takes_the_width_of_the_window_before_it_scrolls_in_its_own_frame(browser, folder, tmp_path):
    data = placed({("embed->L0.H0.k", 1, 3): 1.0, ("L0.H0->logits", 3, 3): -2.0}).to_file().model_dump(mode="json")
    many = data | {"n_pos": 33, "columns": [f"p{place}" for place in range(33)]}
    wide = circuit_svg(many, positions="columns", styled=False)
    text = (folder / "positions.html").read_text(encoding="utf-8")
    start = text.index('<svg xmlns="http://www.w3.org/2000/svg" class="circuit-graph"')
    end = text.index("</svg>", start) + len("</svg>")
    (tmp_path / "wide.html").write_text(text[:start] + wide + text[end:], encoding="utf-8")
    frame = "document.querySelector('.broad > .scroll')"
    for width, whole in ((1440, True), (390, False)):
        tab = Page(browser)
        tab.view(width, 900)
        tab.goto((tmp_path / "wide.html").as_uri())
        assert (tab.evaluate(f"{frame}.scrollWidth <= {frame}.clientWidth")) is whole
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        left, right = tab.evaluate(f"(({{left, right}}) => [left, right])({frame}.getBoundingClientRect())")
        assert left >= 0 and right <= width
        drawn = tab.evaluate("document.querySelector('.circuit-graph').getBoundingClientRect().width")
        assert drawn == float(wide.split(' width="')[1].split('"')[0])
        hint = tab.evaluate("getComputedStyle(document.querySelector('.sideways')).display")
        assert (hint == "none") is whole
        tab.evaluate(f"{frame}.focus()")
        tab.press("ArrowRight")
        tab.until(f"{frame}.scrollLeft {'=== 0' if whole else '> 0'}", 10)
        tab.close()
