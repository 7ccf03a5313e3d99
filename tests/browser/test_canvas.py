"""The canvas grids in a real browser: silent, offline, in both themes, exact, and usable by pointer and keyboard."""

import json

import numpy as np
import pytest

from circuits.report.canvas.encode import MAX_ERROR, frame_bytes, grid_data, inline_json, packed
from circuits.report.canvas.grid import grid_of_patterns
from circuits.report.canvas.heat import HeatPanel, heat_data
from circuits.report.canvas.sources import heat_script, heat_style
from circuits.report.html import policy
from dashboards.circuitsvis_view import circuitsvis_page
from tests.browser.chromium import Page, chromium, require_chromium
from tests.browser.test_report_page import CONTRAST
from tests.security.test_report_injection import PAYLOADS

pytestmark = pytest.mark.browser
N, STEPS = 12, [0, 64, 128, 256]
TOKENS = [f"t{place}" for place in range(N)]
TARGETS = {"clock": [(q, 3) for q in range(4, N)], "reading": [(q, q - 4) for q in range(4, N)]}
ROLES = {"L0.H1": "clock head", "L1.H2": "reading head"}
GRID = "window.attentionGrid"
BOX = "(({x, y, width, height}) => ({x, y, width, height}))(%s.getBoundingClientRect())"


def causal(n_pos: int, steps: int = 1, heads: int = 3) -> np.ndarray:
    """Random causal patterns, [step 2 head q k]."""
    weights = np.exp(np.random.default_rng(n_pos).normal(0, 2, (steps, 2, heads, n_pos, n_pos))) * np.tri(n_pos)
    return weights / weights.sum(-1, keepdims=True)


PATTERNS = causal(N, len(STEPS))


def heat_page() -> str:
    """Two panels of effects at two checkpoints: neutral, not tested and absent cells among them."""
    values = np.random.default_rng(0).normal(0, 1, (2, 2, 5))
    values[:, 0, :4] = [0.9, -0.8, 0.05, 0.0]
    values[:, 1, 4] = np.nan
    tested = np.ones(values.shape, bool)
    tested[:, 0, 3] = False
    columns = ["a", "b", "c", "d", PAYLOADS[0]]
    parts = {"low": values - 0.1, "high": values + 0.1, "tested": tested, "reasons": {(0, 3): PAYLOADS[1]}}
    panels = [HeatPanel(f"Layer {layer}", ["L.H0", "L.H1"], columns, values, **parts) for layer in range(2)]
    words = {"metric": "Logit difference, patched minus clean", "raises": "towards the donor", "lowers": "away from it"}
    words["hatched"] = "not run: exactly 0"
    data = inline_json(heat_data(panels, **words, note="interchange, n = 64", steps=[0, 64], step=64))
    ground = "body { background: light-dark(#fff, #10151c); color-scheme: light dark; margin: 1rem; }"
    start = (
        "window.picks = []; const data = JSON.parse(document.getElementById('d').textContent); window.heatGrid ="
        " HeatGrid.mount(document.getElementById('g'), data, { onPick: (c) => window.picks.push(c) });"
    )
    style, script = heat_style() + ground, heat_script() + start
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>heat</title><meta http-equiv='
        f'"Content-Security-Policy" content="{policy(style, script)}"><style>{style}</style><div id="g"></div>'
        f'<script type="application/json" id="d">{data}</script><script>{script}</script>'
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("canvas")
    words = {"steps": STEPS, "targets": TARGETS, "roles": ROLES, "emerged": 128}
    pages = {
        "grid": grid_of_patterns(PATTERNS, TOKENS, **words).html(),
        "long": grid_of_patterns(causal(600)[0], [f"t{place}" for place in range(600)]).html(),
        "hostile": grid_of_patterns(causal(len(PAYLOADS))[0], PAYLOADS, title=PAYLOADS[0]).html(),
        "heat": heat_page(),
        "circuitsvis": circuitsvis_page(PAYLOADS, causal(len(PAYLOADS))[0, 0, 0]),
    }
    for name, page in pages.items():
        (place / f"{name}.html").write_text(page, encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    require_chromium()
    with chromium(tmp_path_factory.mktemp("profile")) as pipe:
        yield pipe


@pytest.fixture
def page(browser):
    tab = Page(browser)
    tab.view()
    yield tab
    tab.close()


def opened(page: Page, folder, name: str) -> Page:
    """The page of that name, loaded."""
    page.send("Page.addScriptToEvaluateOnNewDocument", source="window.hits = []; window.alert = (v) => hits.push(v);")
    page.goto((folder / f"{name}.html").as_uri())
    return page


def spot(page: Page, q: int, k: int) -> tuple[float, float]:
    """Centre of a cell of the enlarged head."""
    page.evaluate("document.querySelector('.ag-plot').scrollIntoView({block: 'center'})")
    box = page.evaluate(BOX % "document.querySelector('.ag-plot')")
    size = page.evaluate(
        f"AttnDraw.layout(document.querySelector('.ag-zoom').clientWidth, {json.dumps(TOKENS)}, {json.dumps(TOKENS)})"
    )
    return box["x"] + size["left"] + (k + 0.5) * size["cell"], box["y"] + size["top"] + (q + 0.5) * size["cell"]


def shown(page: Page, name: str) -> str:
    """One line of the readout: query, key, p, target or exact."""
    return page.evaluate(f"document.querySelector('.ag-{name}-now').textContent")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["grid", "long", "heat"])
def test_a_grid_is_silent_offline_and_readable_in_both_themes(page, folder, name, scheme):
    page.view(scheme=scheme)
    opened(page, folder, name)
    assert page.evaluate(CONTRAST) == []
    assert page.requests() == [(folder / f"{name}.html").as_uri()]
    assert page.complaints() == []


def test_the_head_with_a_role_comes_first_and_scores_follow_the_checkpoint(page, folder):
    opened(page, folder, "grid")
    assert [page.evaluate(f"{GRID}.state()")[name] for name in ("layer", "head", "checkpoint")] == [1, 2, 3]
    for place in (3, 0):
        page.evaluate(f"{GRID}.set({{checkpoint: {place}}})")
        means = [PATTERNS[place, 1, 2, q, k] for q, k in TARGETS["reading"]]
        score = page.evaluate("document.querySelectorAll('.ag-score')[5].textContent")
        assert abs(float(score) - np.mean(means)) <= 0.005 + MAX_ERROR


def test_hover_is_the_stored_value_and_the_exact_one_where_the_host_has_it(page, folder):
    opened(page, folder, "grid")
    for q, k in ((7, 3), (11, 0), (5, 5)):
        page.hover(*spot(page, q, k))
        assert shown(page, "query") == f"t{q} (position {q})"
        assert abs(float(shown(page, "p")) - PATTERNS[3, 1, 2, q, k]) <= MAX_ERROR + 0.0005
    page.hover(*spot(page, 7, 3))
    assert shown(page, "target") == "clock, reading"
    values = PATTERNS[3, 0, 1].astype("<f4").ravel().tolist()
    page.evaluate(
        f"document.getElementById('grid').replaceChildren(); {GRID} = AttnGrid.mount(document.getElementById('grid'),"
        "JSON.parse(document.getElementById('grid-data').textContent), {exact: true});"
        f"{GRID}.set({{layer: 0, head: 1, exact: {{example: 0, step: 256, layer: 0, head: 1, values: {values}}}}})"
    )
    page.hover(*spot(page, 9, 2))
    assert float(shown(page, "exact")) == pytest.approx(PATTERNS[3, 0, 1, 9, 2], rel=1e-5)
    page.evaluate(f"{GRID}.set({{checkpoint: 0}})")
    assert shown(page, "exact") == "…"


def test_scrubbing_shows_every_checkpoint(page, folder):
    opened(page, folder, "grid")
    found = page.evaluate(
        f"(() => {{ const slider = document.querySelector('.ag-slider'); const seen = [];"
        f"for (let i = 0; i < 4; i += 1) {{ slider.value = i; slider.dispatchEvent(new Event('input'));"
        f"const s = {GRID}.state(); seen.push([s.step, s.attention, s.q, s.k,"
        f"document.querySelector('.ag-step').textContent]); }} return seen; }})()"
    )
    for place, (step, attention, q, k, words) in enumerate(found):
        assert step == STEPS[place]
        assert abs(attention - PATTERNS[place, 1, 2, q, k]) <= MAX_ERROR
        assert words.endswith("before emergence" if step < 128 else "emerged")


def test_acts_are_told_to_the_host_with_their_reason(page, folder):
    opened(page, folder, "grid")
    page.evaluate(
        "document.getElementById('grid').replaceChildren(); window.told = [];"
        f"{GRID} = AttnGrid.mount(document.getElementById('grid'), JSON.parse(document.getElementById('grid-data')"
        ".textContent), {onChange: (state, why) => told.push([why, state.layer, state.head, state.q, state.k])})"
    )
    page.evaluate("document.querySelectorAll('.ag-head')[1].click()")
    page.click(*spot(page, 8, 6))
    page.evaluate("document.querySelector('.ag-plot').focus()")
    page.press("ArrowLeft")
    page.press("Enter")
    page.press("[")
    told = page.evaluate("window.told")
    assert [why for why, *_ in told] == ["head", "cell", "cell", "cell", "step"]
    assert told[1:3] == [["cell", 0, 1, 8, 6], ["cell", 0, 1, 8, 5]]


def test_lines_are_chosen_and_read_by_token(page, folder):
    opened(page, folder, "grid")
    page.evaluate("document.querySelector('[data-mode=lines]').click()")
    page.evaluate("document.querySelector('.ag-plot').scrollIntoView({block: 'center'})")
    size = page.evaluate(f"AttnLines.layout(document.querySelector('.ag-zoom').clientWidth, {TOKENS}, {TOKENS})")
    box = page.evaluate(BOX % "document.querySelector('.ag-plot')")
    at = lambda place: box["y"] + 22 + (place + 0.5) * size["pitch"]  # noqa: E731
    page.hover(box["x"] + size["left"] - 10, at(9))
    strongest = int(PATTERNS[3, 1, 2, 9].argmax())
    assert (shown(page, "query"), shown(page, "key")) == ("t9 (position 9)", f"t{strongest} (position {strongest})")
    page.click(box["x"] + size["left"] - 10, at(9))
    page.hover(box["x"] + size["right"] + 10, at(2))
    assert abs(float(shown(page, "p")) - PATTERNS[3, 1, 2, 9, 2]) <= MAX_ERROR + 0.0005
    assert page.evaluate("document.querySelector('[data-mode=lines]').getAttribute('aria-pressed')") == "true"


def test_the_distance_histogram_says_the_distance_most_read(page, folder):
    opened(page, folder, "grid")
    sums = [np.trace(PATTERNS[3, 1, 2], -distance) / N for distance in range(N)]
    best = int(np.argmax(sums))
    words = page.evaluate("document.querySelectorAll('.ag-spark')[1].getAttribute('aria-label')")
    assert f"reaches {best} back" in words
    assert abs(float(words.split(": ")[1].split(" %")[0]) - 100 * sums[best]) <= 1.5


def test_a_binary_message_is_read_as_the_same_patterns(page, folder):
    opened(page, folder, "grid")
    frames = [frame_bytes(one) for one in PATTERNS]
    example = {"label": "é", "tokens": TOKENS, "patterns": frames, "targets": {}}
    data = packed(grid_data([example], n_layers=2, n_heads=3, steps=STEPS))
    found = page.evaluate(
        f"(() => {{ const bytes = new Uint8Array({list(data)}); const grid = AttnGrid.mount(document.body, bytes);"
        f"grid.set({{checkpoint: 1, layer: 0, head: 2, q: 10, k: 4}}); return grid.state(); }})()"
    )
    assert abs(found["attention"] - PATTERNS[1, 0, 2, 10, 4]) <= MAX_ERROR


def test_above_512_tokens_the_strongest_keys_and_a_part_are_drawn(page, folder):
    opened(page, folder, "long")
    pattern = causal(600)[0, 0, 1]
    strongest, weakest = int(pattern[500].argmax()), int(pattern[500, :501].argmin())
    for k, expected in ((strongest, pattern[500, strongest]), (weakest, 0.0)):
        state = page.evaluate(f"({GRID}.set({{layer: 0, head: 1, q: 500, k: {k}}}), {GRID}.state())")
        assert abs(state["attention"] - expected) <= MAX_ERROR
    assert "queries 408 to 599 of 600" in page.evaluate("document.querySelector('.ag-title').textContent")
    page.evaluate("document.querySelector('.ag-head').scrollIntoView({block: 'center'})")
    box = page.evaluate(BOX % "document.querySelectorAll('.ag-head canvas')[1]")
    page.click(box["x"] + 1, box["y"] + box["height"] / 4)
    assert 140 <= page.evaluate(f"{GRID}.state().q") <= 160
    assert "queries 5" in page.evaluate("document.querySelector('.ag-title').textContent")


def test_fifty_hostile_tokens_are_shown_and_run_nothing(page, folder):
    assert len(PAYLOADS) >= 50
    opened(page, folder, "hostile")
    for place in (0, 20, len(PAYLOADS) - 1):
        page.evaluate(f"{GRID}.set({{q: {place}, k: 0}})")
        assert page.evaluate("document.querySelector('.ag-query-now').textContent").startswith(PAYLOADS[place][:40])
    page.evaluate("document.querySelector('[data-mode=lines]').click()")
    assert page.evaluate("window.hits") == []
    assert page.evaluate("document.querySelectorAll('img, iframe, object, embed, form, base, link, svg').length") == 0
    assert page.requests() == [(folder / "hostile.html").as_uri()]
    assert page.complaints() == []


def test_circuitsvis_draws_hostile_tokens_and_may_ask_for_nothing(page, folder):
    opened(page, folder, "circuitsvis")
    drawn = "document.querySelectorAll('#circuitsvis-head canvas, #circuitsvis-head td').length"
    page.evaluate(
        f"new Promise((done) => {{ const look = () => ({drawn} ? done(1) : setTimeout(look, 20)); look(); }})"
    )
    assert page.evaluate("window.hits") == []
    assert page.evaluate("document.querySelectorAll('img, iframe, object, embed, form, base, link').length") == 0
    assert page.requests() == [(folder / "circuitsvis.html").as_uri()]


def heat_spot(page: Page, panel: int, row: int, column: int) -> tuple[float, float]:
    """Centre of a cell of the heat grid; columns are 40 px wide at most and rows 20 px high."""
    page.evaluate(f"document.querySelectorAll('.hg-plot')[{panel}].scrollIntoView({{block: 'center'}})")
    box = page.evaluate(BOX % f"document.querySelectorAll('.hg-plot')[{panel}]")
    left = box["width"] - 4 - 5 * 40
    return box["x"] + left + (column + 0.5) * 40, box["y"] + 2 + (row + 0.5) * 20


def test_a_heat_cell_says_its_value_interval_and_kind(page, folder):
    opened(page, folder, "heat")
    expected = {
        (0, 0): "+0.900 [+0.800, +1.000]",
        (0, 1): "-0.800 [-0.900, -0.700]",
        (0, 2): "+0.050 [-0.050, +0.150]95 % interval covers 0",
        (0, 3): f"not run: exactly 0{PAYLOADS[1]}",
    }
    for (row, column), words in expected.items():
        page.hover(*heat_spot(page, 1, row, column))
        text = page.evaluate("document.querySelector('.hg-tip').textContent").replace("\u2212", "-")
        assert text == f"Layer 1, L.H{row}, position {'abcd'[column]}{words}"
    page.hover(*heat_spot(page, 1, 1, 4))
    assert page.evaluate("document.querySelector('.hg-tip').hidden")
    keys = page.evaluate("[...document.querySelectorAll('.hg-key')].map((key) => key.textContent)")
    assert keys == ["95 % interval covers 0", "not run: exactly 0"]
    assert page.evaluate("window.hits") == []


def test_a_heat_cell_is_picked_by_click_and_by_keyboard_but_not_where_there_is_none(page, folder):
    opened(page, folder, "heat")
    page.click(*heat_spot(page, 0, 0, 1))
    page.click(*heat_spot(page, 0, 1, 4))
    page.evaluate("document.querySelectorAll('.hg-plot')[1].focus()")
    page.press("ArrowRight")
    page.press("ArrowDown")
    page.press("Enter")
    picks = page.evaluate("window.picks")
    assert [(one["panel"], one["row"], one["column"], one["step"]) for one in picks] == [(0, 0, 1, 64), (1, 1, 1, 64)]
    assert picks[0]["value"] == pytest.approx(-0.8)
    assert page.evaluate("document.querySelector('.ag-hidden').textContent").startswith("Layer 1, L.H1, position b")


def test_sign_is_hue_and_neutral_and_untested_cells_have_none(page, folder):
    opened(page, folder, "heat")
    colours = page.evaluate(
        "(() => { const c = document.querySelector('.hg-plot'); const pen = c.getContext('2d');"
        "const left = c.width - 4 - 5 * 40; return [0, 1, 2].map((i) =>"
        "[...pen.getImageData(left + i * 40 + 20, 12, 1, 1).data]); })()"
    )
    up, down, neutral = colours
    assert up[2] > up[0] and down[0] > down[2]
    assert max(neutral[:3]) - min(neutral[:3]) <= 12
