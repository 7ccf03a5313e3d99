"""The attention view on stores with and without patterns, with hostile tokens and with damage: it shows or it says."""

import base64
import json
import runpy
import shlex
import subprocess
import sys

import numpy as np
import pytest

from circuits.report.canvas.encode import levels_of
from dashboards.components.attention_grid import GRID, GUIDE
from dashboards.views import attention
from interp import jobs
from interp.cli import main
from interp.errors import JobError
from interp.worker import Warm
from probes.patterns_compute import store_patterns
from probes.patterns_own import answer, patterns_of_inputs
from probes.patterns_store import pattern_index, pattern_key, read_patterns
from tests.dash.conftest import HOSTILE
from tests.dash.seen import text
from tests.security.test_report_injection import PAYLOADS


@pytest.fixture
def stored(normal_store):
    """The trained store with the patterns of `tiny`."""
    store_patterns(normal_store.run("tiny"))
    return normal_store


def message(app) -> dict:
    """The head of the frames that the grid was sent, with the frames behind it as `body`."""
    data = next(one.proto.bytes for one in app.get("bidi_component") if one.proto.component_name == GRID)
    size = int.from_bytes(data[:4], "little")
    return {**json.loads(data[4 : 4 + size]), "body": data[4 + size :]}


def guided(app) -> dict:
    """What the grid was led to: its selection and exact values."""
    one = next(one for one in app.get("bidi_component") if one.proto.component_name == GUIDE)
    return json.loads(one.proto.json)


def test_a_run_without_patterns_offers_the_command_and_a_button(view, normal_store):
    app = view(normal_store, "attention", run="tiny")
    assert not app.exception
    assert "interp patterns tiny" in text(app)
    assert [button.label for button in app.button] == ["Store attention patterns"]


def test_the_button_starts_the_job_on_this_run(view, normal_store, monkeypatch):
    started = []
    monkeypatch.setattr(jobs, "start", lambda store, words, run: started.append((words, run)))
    view(normal_store, "attention", run="tiny").button[0].click().run()
    assert started == [(["patterns", "tiny"], "tiny")]


def test_a_job_that_is_refused_is_explained(view, normal_store, monkeypatch):
    def refuse(store, words, run):
        raise JobError("run 'tiny' is being worked on by job train-1; wait for it or cancel it first")

    monkeypatch.setattr(jobs, "start", refuse)
    app = view(normal_store, "attention", run="tiny").button[0].click().run()
    assert "is being worked on" in text(app)
    assert not app.exception


def test_the_message_holds_every_checkpoint_as_it_is_stored(view, stored):
    run = stored.run("tiny")
    head = message(view(stored, "attention", run="tiny", example=1))
    index = pattern_index(run)
    assert head["steps"] == index.steps == [ref.step for ref in run.checkpoints()]
    for (start, stop), pattern in zip(head["examples"][0]["patterns"], read_patterns(run, index, 1), strict=True):
        assert head["body"][start:stop] == levels_of(pattern).tobytes()


def test_the_number_on_a_small_head_has_its_meaning_on_the_page(view, stored):
    app = view(stored, "attention", run="tiny")
    assert message(app)["examples"][0]["targets"]
    (said,) = [caption.value for caption in app.caption if "Sequences: " in caption.value]
    assert said.startswith("The number on a small head is its mean attention on the targets of its role;")


def test_the_address_leads_the_grid_and_is_clamped(view, stored):
    app = view(stored, "attention", run="tiny", step=17, layer=99, head=-4, q=2, k=1)
    led = guided(app)
    assert led["selection"] == {"checkpoint": 2, "layer": 1, "head": 0, "q": 2, "k": 1, "mode": "matrix"}
    assert led["stamp"] == message(app)["stamp"]
    assert (led["exact"]["step"], led["exact"]["layer"], led["exact"]["head"]) == (16, 1, 0)


@pytest.mark.parametrize("address", [{"step": "abc", "q": "1e9", "k": "-7"}, {"example": 10**12, "layer": "</script>"}])
def test_nonsense_in_the_address_shows_a_valid_place(view, stored, address):
    app = view(stored, "attention", run="tiny", **address)
    assert not app.exception
    selection = guided(app)["selection"]
    assert selection["checkpoint"] == 4
    assert 0 <= selection["layer"] <= 1
    assert "q" not in selection


def test_exact_values_are_those_that_were_computed(view, stored):
    app = view(stored, "attention", run="tiny", step=0, layer=1, head=1)
    sent = np.frombuffer(base64.b64decode(guided(app)["exact"]["values"]), "<f4")
    run = stored.run("tiny")
    assert (sent == read_patterns(run, pattern_index(run), 0, [0])[0, 1, 1].ravel()).all()


def test_roles_and_emergence_come_from_stored_detections_and_damage_there_costs_only_them(view, stored):
    run = stored.run("tiny")
    key = next(key for key in run.analyses() if key.startswith("iteration_head-"))
    (run.path / "analysis" / f"{key}.json").write_text("{", encoding="utf-8")
    app = view(stored, "attention", run="tiny")
    assert "heads carry no role" in text(app)
    assert message(app)["roles"] == {}


def test_new_checkpoints_without_patterns_are_named_with_the_way_to_get_them(view, stored):
    run = stored.run("tiny")
    key = pattern_key(run, run.checkpoints()[-1])
    for path in (run.path / "analysis").glob(f"{key}.*"):
        path.unlink()
    app = view(stored, "attention", run="tiny")
    assert "1 of 5 checkpoints have no stored patterns yet" in text(app)
    assert [button.label for button in app.button] == ["Store the rest"]
    assert message(app)["steps"] == [0, 8, 16, 32]


def test_hostile_tokens_travel_as_data_and_are_shown_as_text(view, stored):
    run = stored.run("tiny")
    for ref in run.checkpoints():
        key = pattern_key(run, ref)
        record, arrays = run.analysis(key), run.analysis_arrays(key)
        tokens = [*PAYLOADS, HOSTILE]
        for prompt in record["prompts"]:
            prompt["tokens"] = (tokens * 2)[: len(prompt["tokens"])]
            prompt["label"] = HOSTILE
        run.write_analysis(key, {**record, "rule": HOSTILE}, arrays)
    app = view(stored, "attention", run="tiny")
    assert not app.exception
    assert message(app)["examples"][0]["tokens"][0] == PAYLOADS[0]
    assert not [one for one in app.markdown if one.allow_html and "onerror" in one.value]
    assert not any("<img" in one.value and "\\<" not in one.value for one in app.caption)


@pytest.mark.parametrize("kind", ["json", "npz"])
def test_damaged_patterns_are_said_by_file_name(view, stored, kind):
    run = stored.run("tiny")
    key = pattern_key(run, run.checkpoints()[-1])
    for path in (run.path / "analysis").glob(f"{key}.*{kind}"):
        path.write_bytes(b"\x00 not ours " + path.read_bytes()[:30])
    app = view(stored, "attention", run="tiny")
    assert not app.exception
    assert key in text(app)


@pytest.mark.parametrize("bad", [np.full((2, 2, 3, 3), 0.5, np.float32), None, "beyond"])
def test_arrays_of_another_shape_or_no_probabilities_are_refused(view, stored, bad):
    run = stored.run("tiny")
    key = pattern_key(run, run.checkpoints()[-1])
    arrays = run.analysis_arrays(key)
    first = arrays.pop("prompt_0")
    if bad is not None:
        arrays["prompt_0"] = first + 3 if isinstance(bad, str) else bad
    run.write_analysis(key, run.analysis(key), arrays)
    app = view(stored, "attention", run="tiny", example=0)
    assert not app.exception
    assert "store the patterns again" in text(app)


def test_circuitsvis_is_shown_beside_the_grid_without_loading_torch_or_the_package(view, stored):
    app = view(stored, "attention", run="tiny", beside="circuitsvis")
    assert not app.exception
    assert "in circuitsvis" in text(app)
    code = "import sys, dashboards.views.attention; print(sorted({'torch', 'circuitsvis'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def worker(monkeypatch):
    """The worker's own function, asked without a process; the list holds what was asked."""
    asked = []

    def ask(store, name, request, timeout):
        asked.append((name, request))
        return answer(Warm(store), request)

    monkeypatch.setattr(attention, "ask", ask)
    return asked


def test_own_inputs_are_answered_by_the_worker_and_kept_in_the_address(view, stored, worker):
    app = view(stored, "attention", run="tiny", own="1 0 1", step=16, layer=1, head=0)
    assert not app.exception
    assert worker == [("own_patterns", {"run": "tiny", "inputs": ["1", "0", "1"]})]
    head = message(app)
    assert head["examples"][0]["tokens"] == ["BoS", "1", "0", "1", "EoI", "1", "1", "0", "EoS"]
    own = patterns_of_inputs(stored.run("tiny"), ["1", "0", "1"])
    start, stop = head["examples"][0]["patterns"][2]
    assert head["body"][start:stop] == levels_of(own.patterns[2]).tobytes()
    assert "own=1+0+1" in text(app)
    app.text_input(key="attention.own").set_value("").run()
    assert "own" not in app.query_params
    assert message(app)["examples"][0]["label"] == "length 5, sequence 1"


@pytest.mark.parametrize("inputs", ["7", "BoS", "1 0 1 0 1 0 1 0", HOSTILE[:190]])
def test_own_inputs_that_the_task_refuses_are_explained(view, stored, worker, inputs):
    app = view(stored, "attention", run="tiny", own=inputs)
    assert not app.exception
    assert "Write the inputs alone" in text(app)
    assert not app.get("bidi_component")


@pytest.mark.parametrize("address", [{"example": 1}, {"own": "1 0 1"}])
def test_the_copied_python_and_command_run(view, stored, worker, tmp_path, address):
    app = view(stored, "attention", run="tiny", **address)
    (python,) = [one.value for one in app.code if one.language == "python"]
    (tmp_path / "copied.py").write_text(python, encoding="utf-8")
    assert runpy.run_path(str(tmp_path / "copied.py"))["run"].name == "tiny"
    (command,) = [one.value for one in app.code if one.language == "sh"]
    assert main(shlex.split(command)[1:]) == 0
