"""Every view on an empty, a normal, a hostile and a corrupted store: no exception, and it says what to do."""

import re
import shutil

import pytest

from dashboards import charts
from interp.errors import InterpError
from interp.registry import names
from tests.dash.seen import allowed_html, text

VIEWS = names("view")
WILD = [
    {"step": "abc", "layer": "99", "head": "-4", "example": "1e9"},
    {"step": "-1", "layer": "", "head": "9" * 40, "metric": "<b>", "length": "nan"},
    {"step": "\u0661", "example": "-99999999999999999999", "other": "../../etc", "other_step": "x" * 5000},
]


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_of_an_empty_store_teaches_a_command_and_makes_no_folder(view, empty_store, name):
    app = view(empty_store, name)
    assert not app.exception
    assert "interp demo" in text(app) or "interp train" in text(app)
    assert not empty_store.root.exists()


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_says_how_its_numbers_were_made_and_can_be_shared(view, normal_store, name):
    app = view(normal_store, name, run="tiny", step=16)
    assert not app.exception
    assert app.title[0].value
    line = app.caption[0].value
    if line != "No numbers yet":
        assert " · n: " in line and "not applicable" not in line
        made = line.startswith("Read only: nothing is intervened on · n: ")
        assert made or all(word in line for word in ("direction: ", "ablation: ", "pair family: "))
    link, *others = [code.value for code in app.code if "?run=tiny" in code.value or "from interp" in code.value]
    assert f"{name}?run=tiny" in link
    assert any("store.run('tiny')" in other for other in others)
    commands = [code.value for code in app.code if code.value.startswith("interp ")]
    assert any(f"--store {normal_store.root}" in command for command in commands)


@pytest.mark.parametrize("values", WILD, ids=["words", "signs", "digits"])
@pytest.mark.parametrize("name", VIEWS)
def test_an_address_is_clamped_and_never_a_path(view, normal_store, name, values):
    app = view(normal_store, name, run="tiny", **values)
    assert not app.exception
    assert app.title[0].value
    link = next(code.value for code in app.code if "?run=tiny" in code.value)
    assert not any(wild in link for wild in ("abc", "99", "-4", "etc", "xxx", "%3Cb", "nan"))


@pytest.mark.parametrize("run", ["nowhere", "../tiny", "tiny/../other", "TINY", "a" * 5000, "\x00", "<script>"])
def test_a_run_that_is_not_listed_is_refused_by_name_and_another_is_not_shown_instead(view, normal_store, run):
    app = view(normal_store, "emergence", run=run)
    assert not app.exception
    assert app.error[0].value == "This cannot be shown."
    assert "unknown run" in text(app) or "is not allowed" in text(app)
    assert not app.title


@pytest.mark.parametrize("name", VIEWS)
def test_markup_in_a_run_adds_no_tag(view, hostile_store, name):
    app = view(hostile_store, name, run="tiny")
    assert not app.exception
    assert not [body for body in allowed_html(app) if "<" in body.replace("<style>", "").replace("</style>", "")]
    raw = [one.value for one in (*app.markdown, *app.caption) if "](javascript" in one.value.replace("\\", "")]
    assert not [value for value in raw if "\\]\\(javascript" not in value]


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_of_a_damaged_run_names_the_file_or_does_without_it(view, corrupted_store, name):
    app = view(corrupted_store, name, run="tiny")
    assert not app.exception, app.exception[0].message
    seen = text(app)
    assert app.title or app.error
    if app.error:
        assert str(corrupted_store.root / "tiny") in seen or "tiny" in seen
        assert any(code.value.startswith("interp ") for code in app.code)
    whole = view(corrupted_store, name, run="other")
    assert not whole.exception
    assert whole.title[0].value


def test_the_damaged_run_is_listed_beside_the_others(view, normal_store):
    (normal_store.root / "tiny" / "config.json").write_text("{")
    app = view(normal_store, "runs", run="other")
    states = {row["run"]: row["state"] for row in app.dataframe[0].value.to_dict("records")}
    assert states == {"other": "done", "tiny": "damaged"}
    with pytest.raises(InterpError):
        _ = normal_store.run("tiny").config


def test_two_steps_of_one_run_are_told_apart_and_learning_is_a_gain(view, normal_store):
    run = normal_store.run("tiny")
    steps = [ref.step for ref in run.checkpoints()]
    app = view(normal_store, "compare", run="tiny", other="tiny")
    assert not app.exception
    assert [(one.label, one.value) for one in app.select_slider] == [
        ("First: step of tiny", steps[0]), ("Second: step of tiny", steps[-1]),
    ]  # fmt: skip
    (table,) = [frame.value for frame in app.dataframe if "difference (second minus first)" in frame.value]
    first, second = (table[name] for name in table.columns[1:3])
    assert table.columns[1].startswith("First: tiny, step ") and table.columns[2].startswith("Second: tiny, step ")
    for before, after, gap in zip(first, second, table["difference (second minus first)"], strict=True):
        value, low, high = re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", gap).groups()
        assert float(value) == pytest.approx(float(after.split()[0]) - float(before.split()[0]), abs=1.1e-3)
        assert float(low) <= float(value) <= float(high) and "[" in before and "[" in after
    assert all(int(n) > 0 for n in table["n"])
    newest = view(normal_store, "compare", run="tiny", other="tiny", step=steps[-1])
    assert [one.value for one in newest.select_slider] == [steps[-1], steps[0]]
    assert "no other run" not in text(app)


def test_a_lone_run_says_why_no_other_can_be_chosen(view, normal_store):
    shutil.rmtree(normal_store.root / "other")
    app = view(normal_store, "compare", run="tiny")
    assert not app.exception
    assert next(one for one in app.selectbox if one.label == "Compare with").disabled
    assert "This store has no other run to choose" in text(app)


def test_accuracy_is_drawn_up_to_the_end_of_each_run_and_no_further(view, normal_store, monkeypatch):
    with normal_store.run("other").writer() as writer:
        writer.metric({"step": 500, "loss": 0.5, "accuracy": {"1": 1.0}})
    drawn = {}
    monkeypatch.setattr(charts, "_draw", lambda spec, rows, steps, key, words: drawn.update({key: rows}))
    app = view(normal_store, "compare", run="tiny", other="other")
    assert not app.exception
    ends = [max(cell["until"] for cell in drawn[f"compare.accuracy.{place}"]) for place in (0, 1)]
    assert ends == [60, 500]
    assert "accuracy by length of tiny** (until step 60, its last)" in text(app)
    assert "accuracy by length of other** (until" not in text(app)
    assert all(cell["step"] <= cell["until"] for name in (0, 1) for cell in drawn[f"compare.accuracy.{name}"])
