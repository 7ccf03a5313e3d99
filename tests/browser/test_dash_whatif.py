"""Asking what if in a real browser: click a head or an edge, read the answer beside its controls, in both themes."""

# ruff: noqa: F811 - fixtures that are imported by name

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from circuits.stored import discovery_payload
from dashboards.launch import STORE, command, free_port, stop, wait_until_up
from interp.run import Store
from tests.browser.chromium import Page, Pipe, chromium, require_chromium
from tests.dash.analysed import LAST, analysed, hostile  # noqa: F401
from tests.security.test_report_injection import PAYLOADS
from tests.unit.small_circuits import discovery, placed, shape
from tests.unit.test_circuit_page import REQUEST

pytestmark = pytest.mark.browser
ARTEFACTS = Path(__file__).resolve().parents[2] / "artifacts" / "dashboard"
SECONDS = 120.0
DEEP = """
(function find(root, what) {
  for (const one of root.querySelectorAll("*")) {
    if (one.matches(what)) return one;
    const inner = one.shadowRoot && find(one.shadowRoot, what);
    if (inner) return inner;
  }
  return null;
})(document, %s)
""".strip()
RESTED = (
    "!!document.querySelector('h1') && document.querySelector('[data-testid=stApp]').dataset.testScriptState === "
    "'notRunning'"
)
TEXT = "document.querySelector('[data-testid=stMain]').innerText"
SVG = "[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg.marks"
PLANTED = "script, b, svg[onload], img[src=x], iframe[srcdoc='<b>'], base, object, embed, textarea + b, "
PLANTED += "form:not(.vega-bindings)"  # which every chart has
COUNT_DEEP = """
(function count(root) {
  let n = root.querySelectorAll(%s).length;
  for (const one of root.querySelectorAll("*")) if (one.shadowRoot) n += count(one.shadowRoot);
  return n;
})(document.querySelector("[data-testid=stMain]"))
""".strip()


def deep(selector: str) -> str:
    """JavaScript for the first element of that kind, also inside shadow roots."""
    return DEEP % json.dumps(selector)


@pytest.fixture(scope="module")
def store(analysed: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A copy of the analysed store, with a circuit by position beside the others."""
    require_chromium()
    folder = tmp_path_factory.mktemp("whatif") / "runs"
    shutil.copytree(analysed, folder)
    by_place = placed({("embed->L0.H0.k", 1, 3): 1.0, ("embed->L0.H0.k", 0, 2): 0.5}, shape(heads=1))
    stored = discovery_payload(LAST, "ab" * 32, REQUEST | {"by_position": True}, discovery(by_place))
    Store(folder).run("solved").write_analysis("circuit-by-position", stored)
    return Store(folder)


def served(store: Store) -> Iterator[str]:
    """Address of a running dashboard on a store."""
    port = free_port(None, "127.0.0.1")
    server = subprocess.Popen(command(port), env={**os.environ, STORE: str(store.root)}, stdin=subprocess.DEVNULL)
    assert wait_until_up(port, server, SECONDS)
    yield f"http://127.0.0.1:{port}"
    stop(server)


@pytest.fixture(scope="module")
def base(store: Store) -> Iterator[str]:
    yield from served(store)


@pytest.fixture(scope="module")
def planted(analysed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dashboard on a store whose stored names and words are all payloads."""
    folder = tmp_path_factory.mktemp("planted") / "runs"
    shutil.copytree(analysed, folder)
    words = " ".join(PAYLOADS)

    def change(payload: dict) -> None:
        if "drawn" in payload:
            drawn = payload["drawn"]
            drawn |= dict.fromkeys(("intervention", "metric", "pairs", "raises", "lowers"), words)
            drawn["places"] = {t: PAYLOADS[: len(names)] for t, names in drawn["places"].items()}
            drawn["reasons"] = [words] * len(drawn["reasons"])
            drawn["components"] = PAYLOADS[: len(drawn["components"])]
        if "lens" in payload:
            about = payload["lens"]
            about["positions"] = PAYLOADS[: len(about["positions"])]
            about["vocabulary"] = PAYLOADS[: len(about["vocabulary"])]
            about["examples"] = [PAYLOADS[: len(one)] for one in about["examples"]]
        if "embedding" in payload:
            payload["embedding"]["tokens"] = PAYLOADS[: len(payload["embedding"]["tokens"])]
        if "discovery" in payload:
            payload["discovery"] |= {"headline": words, "notes": PAYLOADS, "limits": PAYLOADS}
            for control in payload["discovery"]["controls"]:
                control["name"] = control["what"] = words
            circuit = payload["discovery"]["circuit"]
            if circuit:
                circuit["provenance"]["model"] = words

    hostile(Store(folder), "", change)
    yield from served(Store(folder))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipe]:
    with chromium(tmp_path_factory.mktemp("profile")) as pipe:
        yield pipe


@pytest.fixture
def page(browser: Pipe) -> Iterator[Page]:
    tab = Page(browser)
    tab.view(1280, 1600)
    tab.send("Page.addScriptToEvaluateOnNewDocument", source="window.hits = []; window.alert = (v) => hits.push(v);")
    yield tab
    tab.close()


def opened(page: Page, address: str) -> Page:
    """The view once it has stopped changing."""
    page.send("Page.navigate", url=address)
    page.until(RESTED)
    page.settle()
    return page


def click_cell(page: Page, row: int, column_from_right: int = 0) -> None:
    """Click a cell of the heatmap's first panel, counted from its right end."""
    page.until(f"!!{deep('canvas.hg-plot')}")
    left, top, wide = page.evaluate(
        f"(() => {{ const e = {deep('canvas.hg-plot')}; e.scrollIntoView({{block: 'center'}});"
        " const b = e.getBoundingClientRect(); return [b.left, b.top, b.width]; })()"
    )
    page.settle()
    page.click(left + wide - 24 - 40 * column_from_right, top + 12 + 20 * row)


def foreign(page: Page, base: str) -> list[str]:
    """Requests to anything but this server."""
    return [url for url in page.requests() if not url.startswith((base, "data:", "blob:", "about:"))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_clicked_head_is_ablated_and_answered_beside_five_controls(page, base, scheme):
    page.view(1280, 1600, scheme)
    opened(page, f"{base}/patching?run=solved&t=2")
    click_cell(page, 1)
    first = page.until(f"{TEXT}.includes('With L1.H0 ablated')")
    page.until("new URLSearchParams(location.search).get('target') === 'L1.H0'")
    page.until(f"!!document.querySelector({json.dumps(SVG)})")
    for phrase in ("under 5 controls", "exploratory", "1 other head"):
        page.until(f"{TEXT}.includes({json.dumps(phrase)})")
    click_cell(page, 0)
    second = page.until(f"{TEXT}.includes('With L0.H0 ablated')")
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    (ARTEFACTS / f"what-if-{scheme}.json").write_text(json.dumps({"first": first, "second": second}))
    page.screenshot(ARTEFACTS / f"what-if-{scheme}.png")
    assert foreign(page, base) == []
    assert page.complaints() == []


def test_a_link_to_an_answer_gives_the_same_answer(page, base):
    opened(page, f"{base}/patching?run=solved&t=2&component=L1.H0&place=7&target=M0&ablate=zero&step={LAST}")
    page.until(f"{TEXT}.includes('With M0 ablated')")
    page.until(f"{TEXT}.includes('L1.H0 at s2 (position 7)')")


def test_the_heatmap_is_steered_by_keys_and_keeps_its_place(page, base):
    opened(page, f"{base}/patching?run=solved&t=2")
    page.until(f"!!{deep('canvas.hg-plot')}")
    page.evaluate(f"window.grid = {deep('canvas.hg-plot')}; window.grid.focus(); 1")
    for key in ("End", "ArrowDown", "Enter"):
        page.press(key)
    page.until("new URLSearchParams(location.search).get('component') === 'L1.H0'")
    page.until(f"{TEXT}.includes('With L1.H0 ablated')")
    assert page.evaluate(f"window.grid === {deep('canvas.hg-plot')}")
    assert page.evaluate("window.grid.getRootNode().activeElement === window.grid")


def test_letting_the_slider_go_moves_the_address_and_the_question(page, base):
    opened(page, f"{base}/patching?run=solved&t=2&target=L1.H0")
    page.until(f"{TEXT}.includes('With L1.H0 ablated')")
    page.until(f"!!{deep('.hg-step')}")
    before = page.evaluate(f"{deep('.hg-step')}.textContent")
    slider = deep("input.ag-slider")
    page.evaluate(f"(() => {{ const s = {slider}; s.value = 0; s.dispatchEvent(new Event('input')); }})()")
    assert page.evaluate(f"{deep('.hg-step')}.textContent") != before  # drawn before anything is sent
    page.evaluate(f"{slider}.dispatchEvent(new Event('change')); 1")
    page.until("new URLSearchParams(location.search).get('step') === '0'")
    page.until(f"{TEXT}.includes('the interval of what is lost covers 0')")


def test_an_edge_of_the_drawing_is_picked_by_click_and_by_key(page, base):
    opened(page, f"{base}/circuit?run=solved&step={LAST}")
    edge = "[data-edge]:not(.other)"
    page.until(f"!!{deep(edge)}")
    name = page.evaluate(f"{deep(edge)}.dataset.edge")
    page.evaluate(f"{deep(edge)}.focus(); 1")
    page.press("Enter")
    page.until(f"new URLSearchParams(location.search).get('target') === {json.dumps(name)}")
    page.until(f"{TEXT}.includes({json.dumps(f'With {name} ablated')})")
    node = deep("[data-node='L1.H0'] .frame")
    x, y = page.evaluate(
        f"(() => {{ const e = {node}; e.scrollIntoView({{block: 'center'}}); const b = e.getBoundingClientRect();"
        " return [b.left + b.width / 2, b.top + 6]; })()"
    )
    page.click(x, y)
    page.until(f"{TEXT}.includes('With L1.H0 ablated')")
    assert foreign(page, base) == []
    assert page.complaints() == []


def test_the_drawings_are_scrubbed_without_asking_the_server(page, base):
    opened(page, f"{base}/circuit?run=solved&step={LAST}")
    page.until(f"!!{deep('.cf-slider')}")
    kept = f"{deep('.cf-stage')}.querySelectorAll('.edge:not(.other)').length"
    page.until(f"{kept} > 0")
    page.evaluate(f"(() => {{ const s = {deep('.cf-slider')}; s.value = 0; s.dispatchEvent(new Event('input')); }})()")
    assert page.evaluate(kept) == 0
    assert page.evaluate("new URLSearchParams(location.search).get('step')") == str(LAST)


def test_a_place_of_an_edge_by_position_asks_for_the_whole_edge_and_marks_each_of_its_places(page, base):
    opened(page, f"{base}/circuit?run=solved&edges=by+position")
    edge = "[data-whole='embed->L0.H0.k']"
    page.until(f"!!{deep(edge)}")
    reached = (
        f"[...{deep('.cf-stage')}.querySelectorAll({json.dumps(edge)})].filter((one) => one.tabIndex === 0).length"
    )
    assert page.evaluate(reached) == 1
    page.evaluate(f"{deep(edge)}.dispatchEvent(new MouseEvent('click', {{ bubbles: true }})); 1")
    page.until("new URLSearchParams(location.search).get('target') === 'embed->L0.H0.k'")
    page.until(f"{TEXT}.includes('With embed->L0.H0.k ablated')")
    assert page.evaluate(f"{deep('.cf-stage')}.querySelectorAll('.edge.picked').length") == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_drawing_is_saved_as_a_picture_of_twice_its_size(page, base, browser, tmp_path, scheme):
    page.view(1280, 1600, scheme)
    browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    opened(page, f"{base}/circuit?run=solved&step={LAST}")
    page.press_on(deep(".cf-save"))
    file = tmp_path / f"solved-step-{LAST}.circuit.png"
    page.until(file.exists, 20)
    data = file.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    size = page.evaluate(f"(({{width, height}}) => [width, height])({deep('.cf-stage svg')}.viewBox.baseVal)")
    assert list(struct.unpack(">II", data[16:24])) == [int(2 * side) for side in size]
    assert len(data) > 10_000  # more than an empty ground
    assert page.complaints() == []


@pytest.mark.parametrize("address", ["edges=whole", "edges=by+position"])
def test_on_a_narrow_screen_a_drawing_keeps_its_size_and_scrolls_in_its_own_frame(page, base, address):
    for width, whole in ((390, False), (1440, True)):
        page.view(width, 900)
        opened(page, f"{base}/circuit?run=solved&{address}")
        page.until(f"!!{deep('.cf-stage svg')}")
        frame, drawing = deep(".cf-stage"), deep(".cf-stage svg")
        page.until(f"{drawing}.getBoundingClientRect().width === Number({drawing}.getAttribute('width'))", 20)
        assert page.evaluate(f"({frame}.scrollLeft = 50, {frame}.scrollLeft)") == (0 if whole else 50)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("name", ["patching?t=2&place=7", "circuit", "lens?depth=0&place=7", "embedding"])
def test_payloads_as_stored_names_add_no_tag(page, planted, name):
    view, _, rest = name.partition("?")
    opened(page, f"{planted}/{view}?run=solved&{rest}")
    page.until(f"{TEXT}.length > 0")
    assert page.evaluate(COUNT_DEEP % json.dumps(PLANTED)) == 0
    assert page.evaluate("hits") == []
    assert foreign(page, planted) == []
