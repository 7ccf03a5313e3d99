"""The attention view as a person uses it: served by Streamlit, in Chromium, offline, with the address as its state."""

import os
import subprocess

import numpy as np
import pytest

from benchmarks.canvas import EXACT, HANDLE, PAINTED, stored, waited
from dashboards.launch import STORE, command, free_port, stop, wait_until_up
from interp.run import Store
from probes.patterns_store import pattern_index, pattern_key, read_patterns
from tests.browser.chromium import Page, chromium, require_chromium
from tests.security.test_report_injection import PAYLOADS

pytestmark = pytest.mark.browser
PROBES = ("/_stcore/health", "/_stcore/host-config")  # Streamlit looks for its own base path with these


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """`plain`, and `hostile` whose tokens, label and rule are markup; 8 heads, 12 checkpoints."""
    made = Store(tmp_path_factory.mktemp("store") / "runs")
    stored(made, "plain", 24, 12)
    run = stored(made, "hostile", len(PAYLOADS), 2)
    for ref in run.checkpoints():
        key = pattern_key(run, ref)
        record, arrays = run.analysis(key), run.analysis_arrays(key)
        record["prompts"][0] |= {"tokens": PAYLOADS, "label": PAYLOADS[0]}
        run.write_analysis(key, {**record, "rule": PAYLOADS[4]}, arrays)
    return made


@pytest.fixture(scope="module")
def base(store):
    """Address of a running dashboard."""
    require_chromium()
    port = free_port(None, "127.0.0.1")
    server = subprocess.Popen(command(port), env={**os.environ, STORE: str(store.root)}, stdin=subprocess.DEVNULL)
    assert wait_until_up(port, server)
    yield f"http://127.0.0.1:{port}"
    stop(server)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as pipe:
        yield pipe


@pytest.fixture
def page(browser):
    tab = Page(browser)
    tab.view(1440, 1100)
    tab.send("Page.addScriptToEvaluateOnNewDocument", source="window.hits = []; window.alert = (v) => hits.push(v);")
    yield tab
    tab.close()


def opened(page: Page, address: str) -> Page:
    """The view with its grid painted and its exact values there."""
    page.send("Page.navigate", url=address)
    page.until(PAINTED)
    page.until(f"{EXACT} !== '…'")
    return page


def complaints(page: Page) -> list[str]:
    """What the console said, but for Streamlit's own look for its base path."""
    failed = [e["params"]["response"] for e in page._own("Network.responseReceived")]
    missing = [one["url"] for one in failed if one["status"] >= 400]
    assert all(url.endswith(PROBES) for url in missing), missing
    return [text for text in page.complaints() if not text.startswith("Failed to load resource")]


def foreign(page: Page, base: str) -> list[str]:
    """Requests to anything but this server."""
    own = (base, "data:", "blob:", "about:")
    return [url for url in page.requests() if not url.startswith(own)]


def exact_of(store: Store, page: Page, name: str) -> float:
    """The stored value of the cell that the page shows."""
    state, run = page.evaluate(f"{HANDLE}.state()"), store.run(name)
    found = read_patterns(run, pattern_index(run), 0, [state["step"]])
    return found[0, state["layer"], state["head"], state["q"], state["k"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_view_is_silent_and_asks_nobody_else(page, base, scheme):
    page.view(1440, 1100, scheme)
    opened(page, f"{base}/attention?run=plain")
    nothing = page.evaluate(pixel())
    assert min(nothing) > 200 if scheme == "light" else max(nothing) < 80
    assert foreign(page, base) == []
    assert complaints(page) == []


def pixel() -> str:
    """The colour of attention 0 in the legend."""
    ramp = f"{HANDLE}.element.querySelector('.ag-ramp').getContext('2d')"
    return f"[...{ramp}.getImageData(0, 0, 1, 1).data].slice(0, 3)"


def test_a_click_on_a_head_reaches_python_and_the_address(page, base, store):
    opened(page, f"{base}/attention?run=plain&step=5&layer=0&head=0")
    assert float(page.evaluate(EXACT)) == pytest.approx(exact_of(store, page, "plain"), rel=1e-5)
    click = f"{HANDLE}.element.querySelectorAll('.ag-head')[6].click()"
    waited(page, f"{EXACT} !== '…' && {HANDLE}.state().head === 6", click)
    assert float(page.evaluate(EXACT)) == pytest.approx(exact_of(store, page, "plain"), rel=1e-5)
    page.until("new URL(location).searchParams.get('head') === '6'")
    assert page.evaluate("new URL(location).searchParams.get('step')") == "5"


def test_an_address_leads_to_its_place_and_nonsense_is_clamped(page, base):
    opened(page, f"{base}/attention?run=plain&step=7&layer=0&head=3&q=20&k=4&draw=lines")
    state = page.evaluate(f"{HANDLE}.state()")
    assert [state[name] for name in ("step", "layer", "head", "q", "k", "mode")] == [7, 0, 3, 20, 4, "lines"]
    opened(page, f"{base}/attention?run=plain&step=abc&layer=99&head=-4&q=9999&k=5")
    state = page.evaluate(f"{HANDLE}.state()")
    assert [state[name] for name in ("step", "layer", "head", "q", "k")] == [11, 0, 0, 23, 5]


def test_scrubbing_sends_nothing_and_its_end_reaches_the_address(page, base, store):
    opened(page, f"{base}/attention?run=plain&head=2")
    before = len(page._own("Network.webSocketFrameSent"))
    slider = f"{HANDLE}.element.querySelector('.ag-slider')"
    steps = "for (let i = 0; i < 9; i += 1) { s.value = i; s.dispatchEvent(new Event('input')); }"
    page.evaluate(f"((s) => {{ {steps} }})({slider})")
    assert page.evaluate(f"{HANDLE}.state().step") == 8
    assert len(page._own("Network.webSocketFrameSent")) == before
    page.until("new URL(location).searchParams.get('step') === '8'")
    page.until(f"{EXACT} !== '…'")
    assert float(page.evaluate(EXACT)) == pytest.approx(exact_of(store, page, "plain"), rel=1e-5)


def test_the_keyboard_alone_goes_from_head_to_cell_to_checkpoint(page, base):
    opened(page, f"{base}/attention?run=plain&head=0")
    page.evaluate(f"{HANDLE}.element.querySelector('.ag-head[aria-pressed=true]').focus()")
    page.press("ArrowRight")
    page.evaluate(f"{HANDLE}.element.querySelector('.ag-plot').focus()")
    page.press("Home")
    page.press("[")
    page.until("new URL(location).searchParams.get('head') === '1'")
    page.until("new URL(location).searchParams.get('step') === '10'")
    assert page.evaluate(f"{HANDLE}.state().k") == 0
    assert page.evaluate(f"{HANDLE}.element.querySelector('.ag-plot').matches(':focus')")  # a rerun keeps the focus


def test_another_sequence_never_shows_exact_values_of_the_one_before(page, base, store):
    opened(page, f"{base}/attention?run=plain&head=1")
    page.evaluate("document.querySelector('[role=combobox][aria-label*=Sequence]').focus()")
    page.press("ArrowDown")
    page.until("document.querySelectorAll('[role=option]').length === 2")
    page.press("ArrowDown")
    page.evaluate(
        f"window.shown = new Set(); window.looking = setInterval(() => {{ const g = {HANDLE};"
        "if (g && g.element.isConnected && g.element.querySelectorAll('.ag-strip span').length === 9)"
        f"shown.add([g.state().q, g.state().k, {EXACT}].join()); }}, 2)"
    )
    page.press("Enter")
    page.until(f"{HANDLE}?.element.querySelectorAll('.ag-strip span').length === 9 && {EXACT} !== '…'")
    run = store.run("plain")
    stored_head = read_patterns(run, pattern_index(run), 1, [11])[0, 0, 1]
    for q, k, exact in (text.split(",") for text in page.evaluate("[...window.shown]")):
        assert exact == "…" or float(exact) == pytest.approx(stored_head[int(q), int(k)], rel=1e-5)


def test_circuitsvis_is_a_sandboxed_second_view_that_asks_nobody(page, base):
    opened(page, f"{base}/attention?run=plain&beside=circuitsvis")
    every = "[...document.querySelectorAll('*')]"
    frames = f"{every}.flatMap((one) => [...(one.shadowRoot?.querySelectorAll('iframe') ?? [])])"
    page.until(f"{frames}.length === 1")
    assert page.evaluate(f"{frames}[0].getAttribute('sandbox')") == "allow-scripts"
    assert "default-src 'none'" in page.evaluate(f"{frames}[0].srcdoc")
    assert foreign(page, base) == []
    assert complaints(page) == []


def test_hostile_tokens_labels_and_rules_are_text(page, base):
    opened(page, f"{base}/attention?run=hostile&beside=circuitsvis&q={len(PAYLOADS) - 1}&k=0")
    assert page.evaluate(f"{HANDLE}.element.querySelector('.ag-key-now').textContent").startswith(PAYLOADS[0])
    page.settle()
    assert page.evaluate("window.hits") == []
    assert page.evaluate("document.querySelectorAll('img[src=x], object, embed, base, form').length") == 0
    assert foreign(page, base) == []
    assert complaints(page) == []
    assert np.isfinite(float(page.evaluate(EXACT)))
