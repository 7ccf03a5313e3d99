"""The dashboard as a person uses it: every view in both themes, links, keyboard, cancelling, and hostile notes."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from circuits.detect import detect_run
from circuits.report.build import build_report
from circuits.report.render import write_report
from dashboards import data
from dashboards.launch import STORE, command, free_port, stop, wait_until_up
from dashboards.listing import views
from interp import jobs
from interp.run import Store
from interp.train import train
from tests.browser.chromium import Page, Pipe, chromium, require_chromium
from tests.dash.conftest import LIGHT, tiny_config
from tests.security.test_report_injection import PAYLOADS

pytestmark = pytest.mark.browser
ARTEFACTS = Path(__file__).resolve().parents[2] / "artifacts" / "dashboard"
SECONDS = 90.0
SETTLED = """(() => {
  const app = document.querySelector("[data-testid=stApp]");
  const charts = [...document.querySelectorAll("[data-testid=stVegaLiteChart]")];
  return Boolean(document.querySelector("h1")) && app.dataset.testScriptState === "notRunning"
    && charts.every((chart) => chart.querySelector("canvas, svg.marks"));
})()
"""
TEXT = "document.querySelector('[data-testid=stMain]').innerText"
GROUND = "getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor"
BRIGHTNESS = f"{GROUND}.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0)"
SLIDER = "document.querySelector('[data-testid=stMain] input[type=range]')"
PLANTED = "script, b, svg[onload], img[src=x], iframe[srcdoc='<b>'], base, object, embed, template, textarea + b"
PLANTED += ", form:not(.vega-bindings)"
FRAME = """
[...document.querySelectorAll("[data-testid=stMain] *")]
  .map((host) => (host.tagName === "IFRAME" ? host : host.shadowRoot?.querySelector("iframe")))
  .find(Boolean)
""".strip()
ENDLESS = ["train", "parity", "--name=endless", "--set=train.steps=10000000", "--set=train.stop_accuracy=1.0"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """`tiny` with detections and a report, `other`, and `hostile` whose every text is one of the payloads."""
    require_chromium()
    made = Store(tmp_path_factory.mktemp("store") / "runs")
    for seed, name in enumerate(("tiny", "other", "hostile")):
        train(tiny_config(seed), made, name)
    for name in ("tiny", "hostile"):
        found = detect_run(made.run(name), every_checkpoint=True, options=LIGHT)
        write_report(build_report(made.run(name), found=found), made.run(name).path / "report")
    plant(made.run("hostile"))
    return made


def plant(run: Any) -> None:
    """Every payload as a note: message, events, score names, headlines, directions and verdict notes."""
    for key in run.analyses():
        payload = run.analysis(key)
        payload["detection"] |= {"headline": " ".join(PAYLOADS), "missing": PAYLOADS, "limits": PAYLOADS}
        run.write_analysis(key, payload)
    with run.writer() as writer:
        writer.status(message=" ".join(PAYLOADS))
        for payload in PAYLOADS:
            writer.event({"step": 60, "event": payload, "note": payload})
        writer.metric({"step": 60, "scores": {payload: 0.5 for payload in PAYLOADS}})


@pytest.fixture(scope="module")
def base(store: Store) -> Iterator[str]:
    """Address of a running dashboard on that store."""
    port = free_port(None, "127.0.0.1")
    server = subprocess.Popen(command(port), env={**os.environ, STORE: str(store.root)}, stdin=subprocess.DEVNULL)
    assert wait_until_up(port, server, SECONDS)
    yield f"http://127.0.0.1:{port}"
    stop(server)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipe]:
    with chromium(tmp_path_factory.mktemp("profile")) as pipe:
        yield pipe


@pytest.fixture
def page(browser: Pipe) -> Iterator[Page]:
    tab = Page(browser)
    tab.view(1280, 1000)
    tab.send("Page.addScriptToEvaluateOnNewDocument", source="window.hits = []; window.alert = (v) => hits.push(v);")
    yield tab
    tab.close()


def opened(page: Page, address: str) -> Page:
    """The view once it has stopped changing, with every chart drawn."""
    page.send("Page.navigate", url=address)
    page.until(SETTLED)
    page.settle()
    return page


def foreign(page: Page, base: str) -> list[str]:
    """Requests to anything but this server."""
    return [url for url in page.requests() if not url.startswith((base, "data:", "blob:", "about:"))]


@pytest.mark.parametrize("name", [view.id for view in views()])
def test_a_view_is_silent_asks_nobody_else_and_follows_the_theme(page, base, name):
    opened(page, f"{base}/{name}?run=tiny&step=16")
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    for scheme, right in (("light", "> 700"), ("dark", "< 120")):
        page.view(1280, 1000, scheme)
        page.until(f"{BRIGHTNESS} {right} && {SETTLED}")
        page.screenshot(ARTEFACTS / f"{name}-{scheme}.png", full=True)
    assert page.evaluate("location.pathname") == f"/{name}"
    assert "This view has a defect" not in page.evaluate(TEXT)
    assert foreign(page, base) == []
    assert page.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_title_is_whole_on_a_narrow_screen(page, base, scheme):
    page.view(390, 844, scheme)
    opened(page, f"{base}/patching?run=tiny&step=77")
    hidden = "document.querySelector('[data-testid=stExpandSidebarButton]')"
    page.until(f"Boolean({hidden})")  # the sidebar is folded away, and the bar with its button is drawn
    bar, title = (
        f"document.querySelector('{one}').getBoundingClientRect()" for one in ("[data-testid=stHeader]", "h1")
    )
    page.until(f"{title}.top >= {bar}.bottom && {title}.height > 0", 30)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(ARTEFACTS / f"narrow-{scheme}.png")
    inner = "[...document.querySelectorAll('[data-testid=stButtonGroup] [role=radiogroup]')]"
    assert page.evaluate(f"{inner}.filter((one) => one.scrollWidth > one.clientWidth + 1).length") == 0


def test_the_root_leads_to_the_list_of_runs(page, base):
    opened(page, f"{base}/")
    page.until("location.pathname === '/runs'")
    page.until(f"{TEXT}.includes('3 runs in')")


def test_a_link_leads_to_its_checkpoint_and_the_keyboard_moves_it(page, base):
    opened(page, f"{base}/emergence?run=tiny&step=15")
    page.until(f"{SLIDER}.getAttribute('aria-valuetext') === '16'")
    page.evaluate(f"{SLIDER}.focus()")
    page.press("ArrowRight")
    page.until("new URL(location).searchParams.get('step') === '32'")
    page.until(f"{TEXT}.includes('Step 32:')")
    opened(page, page.evaluate("location.href"))
    page.until(f"{SLIDER}.getAttribute('aria-valuetext') === '32'")
    opened(page, f"{base}/emergence?run=tiny&step=abc&layer=99&head=-4&length=x")
    page.until(f"{SLIDER}.getAttribute('aria-valuetext') === '60'")


def test_the_chosen_run_and_step_go_along_to_the_next_view(page, base):
    opened(page, f"{base}/emergence?run=other&step=8")
    page.press_on("[...document.querySelectorAll('[data-testid=stSidebar] a')].find((a) => /Compare/.test(a.text))")
    page.until("location.pathname === '/compare'")
    page.until(SETTLED)
    page.until("['run', 'step'].map((name) => new URL(location).searchParams.get(name)).join() === 'other,8'")


def test_the_share_button_gives_a_link_with_every_parameter(page, base):
    opened(page, f"{base}/emergence?run=tiny")
    page.press_on("[...document.querySelectorAll('button')].find((b) => /Share/.test(b.innerText))")
    page.until("document.querySelectorAll('[data-testid=stPopoverBody] code').length >= 3")
    shown = page.evaluate("[...document.querySelectorAll('[data-testid=stPopoverBody] code')].map((c) => c.innerText)")
    assert shown[0].replace("\n", "").startswith(f"{base}/emergence?run=tiny&")
    assert "step=60" in shown[0]
    assert "length=5" in shown[0]


def test_cancelling_is_answered_and_closing_the_browser_stops_nothing(page, browser, base, store):
    job = jobs.start(store, ENDLESS, run="endless")
    page.until(lambda: "endless" in store.names() and bool(store.run("endless").checkpoints()))
    first = Page(browser)
    opened(first, f"{base}/runs")
    first.until(f"/endless: step \\d+/.test({TEXT})")
    first.close()
    assert job.status().state == "running"
    opened(page, f"{base}/runs")
    button = "[...document.querySelectorAll('button')].find((b) => b.innerText.trim() === 'Cancel')"
    page.press_on(button)
    page.until(f"{TEXT}.includes('cancelled')")
    assert job.status().state == "cancelled"
    assert store.run("endless").status().state == "interrupted"
    assert page.complaints() == []


def test_a_report_is_shown_in_a_frame_that_can_reach_nothing(page, base, store):
    opened(page, f"{base}/report?run=tiny")
    page.until(f"Boolean({FRAME})")
    assert page.evaluate(f"({FRAME}).getAttribute('sandbox')") == "allow-scripts"
    assert page.evaluate(f"({FRAME}).contentDocument") is None  # another origin: this page cannot look in, nor it out
    html = data.report_files(store.run("tiny"))["report.html"].read_text()
    assert page.evaluate(f"({FRAME}).srcdoc.length") == len(html.encode("utf-16-le")) // 2
    assert foreign(page, base) == []


@pytest.mark.parametrize("name", [view.id for view in views()])
def test_fifty_hostile_notes_add_no_tag_and_run_nothing(page, base, name):
    assert len(PAYLOADS) >= 50
    opened(page, f"{base}/{name}?run=hostile")
    page.until(f"{TEXT}.length > 0")
    assert page.evaluate("hits") == []
    found = f"[...document.querySelectorAll(`[data-testid=stMain] :is({PLANTED})`)]"
    mine = "(one) => one.tagName !== 'TEMPLATE' || one.content.querySelector('b')"  # Streamlit's lists use templates
    assert page.evaluate(f"{found}.filter({mine}).map((one) => one.outerHTML)") == []
    links = "[...document.querySelectorAll('[data-testid=stMain] a')].map((a) => a.href)"
    assert [link for link in page.evaluate(links) if not link.startswith(base)] == []
    assert foreign(page, base) == []


def test_hostile_words_are_shown_as_they_are(page, base):
    opened(page, f"{base}/emergence?run=hostile")
    for payload in (
        "<script>alert(1)</script>",
        "[a](javascript:alert(1))",
        "![a](//x/y.png)",
        "{{ 7*7 }}",
        "&lt;b&gt;",
    ):
        page.until(f"{TEXT}.replace(/\\s+/g, ' ').includes({json.dumps(payload)})", 30)


def test_folders_with_names_that_are_not_allowed_are_no_runs(page, base, store):
    folder = store.root / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    (folder / "config.json").write_text((store.root / "tiny" / "config.json").read_text())
    opened(page, f"{base}/runs?run=tiny")
    assert "onerror" not in page.evaluate("document.body.innerText")
    assert page.evaluate("hits") == []
