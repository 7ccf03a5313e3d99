"""Jobs from the dashboard: a training started and cancelled by clicks, bad names start nothing, reports are built."""

import threading
from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from dashboards.views.runs import _arguments
from interp import jobs
from interp.run import Store
from tests.dash.seen import text

SETTINGS = "train.steps=10000000\ntrain.stop_accuracy=1.0\n\ndata.per_length=16"


def until(app: AppTest, claim: Callable[[], bool]) -> bool:
    """Run the app again and again until the claim holds, for at most 90 s."""
    pause = threading.Event()
    for _ in range(180):
        app.run()
        if claim():
            return True
        pause.wait(0.5)
    return False


def badges(app: AppTest) -> str:
    """States that are shown as badges."""
    return " ".join(one.value for one in app.markdown if "-badge[" in one.value)


def test_a_training_is_started_followed_and_cancelled_by_clicks(view, empty_store):
    app = view(empty_store, "runs")
    app.selectbox(key="runs.task").set_value("parity")
    app.text_input(key="runs.name").set_value("clicked")
    app.text_area(key="runs.settings").set_value(SETTINGS)
    app.run()
    command = next(code.value for code in app.code if code.value.startswith("interp train"))
    assert command.startswith("interp train parity --name=clicked --seed=0 --set=train.steps=10000000 --set=train.stop")
    app.button(key="runs.start").click().run()
    assert not app.exception
    (job,) = jobs.jobs(empty_store)
    assert job.spec.arguments[-2:] == ("--store", str(empty_store.root))
    assert "starting" in badges(app) or "running" in badges(app)
    assert until(app, lambda: "running" in badges(app) and "clicked" in text(app))
    app.button(key=f"runs.cancel.{job.id}").click().run()
    assert not app.exception
    assert until(app, lambda: "cancelled" in badges(app))
    assert job.status().state == "cancelled"
    assert not app.button(key="runs.start").disabled
    assert empty_store.run("clicked").status().state == "interrupted"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("../escape", "is not allowed"),
        ("--store=/elsewhere", "is not allowed"),
        ("<b>", "is not allowed"),
        ("tiny", "A run called tiny exists."),
    ],
)
def test_a_name_that_is_taken_or_not_allowed_starts_nothing(view, normal_store, name, says):
    app = view(normal_store, "runs")
    app.text_input(key="runs.name").set_value(name)
    app.button(key="runs.start").click().run()
    assert not app.exception
    assert says in text(app)
    assert jobs.jobs(normal_store) == []


def test_a_setting_stays_one_argument_whatever_it_holds():
    words = _arguments("parity", "p", 3, "--store=/x\n; rm -rf /\n  a b = c ")
    assert words == ["train", "parity", "--name=p", "--seed=3", "--set=--store=/x", "--set=; rm -rf /", "--set=a b = c"]


def test_a_report_is_built_as_a_job_and_then_shown(view, normal_store):
    app = view(normal_store, "report", run="tiny")
    assert "This run has no report yet." in text(app)
    app.button(key="report.offer").click().run()
    assert not app.exception
    (job,) = jobs.jobs(normal_store)
    assert job.spec.arguments[:3] == ("report", "make", "tiny")
    job.cancel()
    app.run()
    assert not app.exception
    assert "cancelled" in badges(app)
    assert app.button(key="report.offer")


def test_a_second_job_on_a_run_is_refused_with_the_name_of_the_first(view, normal_store):
    first = jobs.start(normal_store, _arguments("parity", "long", 0, SETTINGS), run="tiny")
    app = view(normal_store, "report", run="tiny")
    app.button(key="report.offer").click().run()
    assert not app.exception
    assert f"is being worked on by job {first.id}" in text(app)
    first.cancel()


def test_a_finished_report_is_verified_and_offered_for_download(view, reported_store):
    app = view(reported_store, "report", run="tiny")
    assert not app.exception
    assert "content matches its hash" in app.success[0].value
    assert [button.label for button in app.get("download_button")] == [
        "Download report.html",
        "Download report.json",
        "Download report.md",
    ]
    path = reported_store.run("tiny").path / "report" / "report.json"
    path.write_text(path.read_text().replace('"step"', '"stop"', 1))
    app = view(reported_store, "report", run="tiny")
    assert not app.exception
    assert not app.success
    assert app.error


@pytest.fixture
def reported_store(normal_store: Store) -> Store:
    """The trained store with a report of `tiny` made from its stored detections."""
    from circuits.detect import detect_run
    from circuits.report.build import build_report
    from circuits.report.render import write_report
    from tests.dash.conftest import LIGHT

    run = normal_store.run("tiny")
    found = detect_run(run, every_checkpoint=True, options=LIGHT)
    write_report(build_report(run, found=found), run.path / "report")
    return normal_store
