"""The page and the figure of the patches of a run in a real browser: silent, offline, readable in both themes."""

import pytest

from circuits.report.heatmap import HeatCell, Legend, Panel, heatmap
from circuits.report.heatmap_page import PatchPage, render_page
from tests.browser.chromium import Page, chromium, require_chromium
from tests.browser.test_report_page import CONTRAST

pytestmark = pytest.mark.browser
KINDS = ("effect", "neutral", "skipped", "effect")
ROWS = tuple(f"t={t}" for t in range(3))
CELLS = tuple(
    tuple(HeatCell((-1.0) ** index * (t + 1), f"tip {t} {index}", kind) for index, kind in enumerate(KINDS))
    for t in range(3)
)
PANELS = [Panel("L1.H0", ROWS, ("BoS", "x1", "EoI", "s1"), CELLS, "", "position")]
LEGEND = Legend("logit difference", "raises it", "lowers it")
FACT = ("Task", "<img src=x onerror=alert(1)> polynomial")
FILL = "getComputedStyle(document.querySelector('{}')).fill"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("patches")
    page = PatchPage(
        title="Patches",
        overline="Activation patching",
        heading="Patching each head",
        facts=[FACT],
        reading="An effect is a change.",
        caption="Point at a cell.",
        columns=["step", "effect"],
        rows=[["t=1", "2.0 [1.0, 3.0]"]],
        provenance=[("Seed", "0")],
    )
    (place / "page.html").write_text(render_page(page, PANELS, LEGEND), encoding="utf-8")
    (place / "figure.svg").write_text(heatmap(PANELS, LEGEND, "Patches", "Words", alone=True), encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    require_chromium()
    with chromium(tmp_path_factory.mktemp("profile")) as pipe:
        yield pipe


@pytest.mark.parametrize("name", ["page.html", "figure.svg"])
def test_both_files_ask_for_nothing_say_nothing_and_follow_the_theme(browser, folder, name):
    fills = {}
    for scheme in ("light", "dark"):
        tab = Page(browser)
        tab.view(scheme=scheme)
        tab.goto((folder / name).as_uri())
        assert tab.requests() == [(folder / name).as_uri()]
        assert tab.complaints() == []
        fills[scheme] = [tab.evaluate(FILL.format(one)) for one in (".heat .up", ".heat .down", ".heat .flat", "text")]
        tab.close()
    assert all(light != dark for light, dark in zip(fills["light"], fills["dark"], strict=True))
    assert all(len(set(colours)) == 4 for colours in fills.values())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_of_the_page_has_contrast_and_nothing_overflows(browser, folder, scheme):
    for width in (1280, 390):
        tab = Page(browser)
        tab.view(width, 900, scheme)
        tab.goto((folder / "page.html").as_uri())
        assert tab.evaluate(CONTRAST) == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("document.images.length") == 0
        tab.close()
