"""Discoveries through training are stored by content, go on where they stopped, and do not depend on processes."""

import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from circuits import through_training
from circuits.find import Settings
from circuits.stored import newest_circuit, newest_trajectory, read_circuit, stored_circuits
from circuits.subject import Prompts
from circuits.through_training import Failed, Request, discover_all, discover_at, follow, key_of, light
from interp.errors import InterpError, Interrupted, StoreError, StoreFull, UsageError
from interp.run import Run
from tests.unit.runs_with_circuits import LAST, run_with_circuit

STEPS = [0, 5, LAST]
QUICK = Settings(method="exact", reruns=0, controls=5, removals=40)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(tmp_path) -> Run:
    return run_with_circuit(tmp_path, tuple(STEPS))


def request(run: Run, step: int = LAST, **changes) -> Request:
    given = Request(str(run.path.parent), run.name, step, Prompts(3, 64), "resample", False, QUICK.model_dump())
    return replace(given, **changes)


def without_times(found) -> dict:
    return found.model_dump(exclude={"timing", "peak_mib"})


def counted(monkeypatch) -> list[int]:
    """Steps that are computed from now on, not read."""
    seen, real = [], through_training.discover

    def discover(subject, *given):
        seen.append(subject.step)
        return real(subject, *given)

    monkeypatch.setattr(through_training, "discover", discover)
    return seen


def test_what_is_stored_equals_what_is_computed_again(run, monkeypatch):
    seen = counted(monkeypatch)
    first = discover_at(request(run))
    stored = discover_at(request(run))
    fresh = discover_at(request(run, fresh=True))
    assert seen == [LAST, LAST], "the second call reads"
    assert stored == first and without_times(fresh) == without_times(first)
    assert first.verdict in ("circuit", "candidate") and {"L0.H0", "L1.H0"} <= set(first.nodes)


def test_other_prompts_settings_weights_and_code_have_other_keys(run, monkeypatch):
    one = request(run)
    others = [
        replace(one, prompts=Prompts(4, 64)),
        replace(one, ablation="mean"),
        replace(one, by_position=True),
        replace(one, settings=QUICK.model_copy(update={"seed": 1}).model_dump()),
        replace(one, step=0),
    ]
    keys = [key_of(run, each) for each in (one, *others)]
    monkeypatch.setattr(through_training, "source_hash", lambda: "edited")
    keys.append(key_of(run, one))
    assert len(set(keys)) == 7
    assert key_of(run, replace(one, fresh=True)) == keys[-1], "asking for it anew is no other result"


def test_a_stopped_call_goes_on_where_it_was(run, monkeypatch):
    requests, real = [request(run, step) for step in STEPS], through_training.discover

    def stopped(subject, *given):
        if subject.step == LAST:
            raise KeyboardInterrupt
        return real(subject, *given)

    monkeypatch.setattr(through_training, "discover", stopped)
    with pytest.raises(Interrupted, match="goes on after the checkpoints that are done"):
        discover_all(discover_at, requests, 1, lambda done, of: None)
    monkeypatch.setattr(through_training, "discover", real)
    seen, told = counted(monkeypatch), []
    found = discover_all(discover_at, requests, 1, lambda done, of: told.append((done, of)))
    assert seen == [LAST] and told == [(1, 3), (2, 3), (3, 3)]
    assert [one.verdict == "no behaviour to explain" for one in found] == [True, False, False]


def failing_at(monkeypatch, step: int, error: Exception):
    """Searches of one step raise from now on; what they raised before is forgotten."""
    real = through_training.discover

    def discover(subject, *given):
        if subject.step == step:
            raise error
        return real(subject, *given)

    monkeypatch.setattr(through_training, "discover", discover)
    return lambda: monkeypatch.setattr(through_training, "discover", real)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), StoreError("disk"), ValueError("x")])
def test_one_checkpoint_that_fails_ends_no_other_and_is_looked_at_again(run, monkeypatch, error):
    mended = failing_at(monkeypatch, 5, error)
    told = []
    found, story = follow(run, STEPS, request(run), 1, lambda done, of: told.append((done, of)))
    assert [one is None for one in found] == [False, True, False] and told[-1] == (3, 3)
    name = "" if isinstance(error, StoreError) else f"{type(error).__name__}: "
    assert [(one.step, one.reason) for one in story.failed] == [(5, f"{name}{error}")]
    assert newest_trajectory(run) == story
    mended()
    seen = counted(monkeypatch)
    found, story = follow(run, STEPS, request(run), 1, lambda done, of: None)
    assert seen == [5] and None not in found and not story.failed and newest_trajectory(run) == story


def test_a_damaged_checkpoint_is_one_that_fails(run):
    (weights,) = (run.path / "checkpoints").glob("step-*5/model.safetensors")
    weights.write_bytes(b"nothing")
    _, story = follow(run, STEPS, request(run), 1, lambda done, of: None)
    assert [one.step for one in story.failed] == [5] and "model.safetensors" in story.failed[0].reason


def test_where_all_are_refused_for_the_same_reason_the_call_is(run, monkeypatch):
    seen = counted(monkeypatch)
    with pytest.raises(UsageError, match="99"):
        follow(run, STEPS, request(run, prompts=Prompts(99, 64)), 1, lambda done, of: None)
    assert seen == []
    failing_at(monkeypatch, 0, StoreFull("no room"))
    with pytest.raises(StoreFull, match="no room"):
        follow(run, STEPS, request(run), 1, lambda done, of: None)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)])
def test_what_one_checkpoint_is_refused_for_ends_no_other_in_whatever_order(order):
    def one(index):
        if index == 0:
            raise UsageError("nothing differs at step 0")
        return index

    found = discover_all(one, order, 1, lambda done, of: None)
    assert [found[order.index(index)] for index in range(3)] == [Failed("nothing differs at step 0", "usage"), 1, 2]


@pytest.mark.parametrize("workers", [1, 2])
def test_no_checkpoints_are_said(workers):
    with pytest.raises(UsageError, match="no checkpoint to look at"):
        discover_all(discover_at, [], workers, lambda done, of: None)


def test_where_every_checkpoint_fails_there_is_no_trajectory(run, monkeypatch):
    monkeypatch.setattr(through_training, "discover", lambda *given: 1 / 0)
    with pytest.raises(InterpError, match="none of the 3 checkpoints could be looked at: ZeroDivisionError"):
        follow(run, STEPS, request(run), 1, lambda done, of: None)
    assert newest_trajectory(run) is None


@pytest.mark.slow
def test_a_process_that_is_killed_ends_no_other():
    requests, told = [0, signal.SIGKILL, 0, 0], []  # each process sends itself the signal; 0 is none
    found = discover_all(signal.raise_signal, requests, 2, lambda done, of: told.append((done, of)))
    assert [found[i] for i in (0, 2, 3)] == [None, None, None]
    assert isinstance(found[1], Failed) and "ended from outside" in found[1].reason and told[-1] == (4, 4)


@pytest.mark.slow
def test_errors_of_other_processes_keep_their_words(run):
    wrong = [request(run, 77), request(run, 78)]
    found = discover_all(discover_at, wrong, 2, lambda done, of: None)
    assert [one.kind for one in found] == ["usage", "usage"]
    for step, one in zip((77, 78), found, strict=True):
        assert one.reason.startswith(f"unknown checkpoint of run 'solved': '{step}'")
    with pytest.raises(UsageError, match=r"unknown checkpoint of run 'solved': '77'"):
        discover_all(discover_at, [request(run, 77)] * 2, 2, lambda done, of: None)


def test_a_story_of_format_1_is_told_again_by_the_present_rule(run):
    _, story = follow(run, STEPS, request(run), 1, lambda done, of: None)
    (key,) = (key for key in run.analyses() if key.startswith("circuitpath-"))
    payload = run.analysis(key)
    old = {name: value for name, value in payload["trajectory"].items() if name not in ("failed", "n_edges")}
    old["edges"] = [{"edge": "embed->M0", "present": STEPS, "born": 0, "died": None}]
    run.write_analysis(key, {**payload, "trajectory": {**old, "format": 1}})
    assert newest_trajectory(run) == story


def test_following_a_run_stores_its_circuits_and_their_story(run):
    found, story = follow(run, STEPS, request(run), 1, lambda done, of: None)
    assert [point.step for point in story.points] == STEPS and len(found) == 3
    assert story.points[2].overlap == 1.0, "the same weights give the same circuit"
    assert newest_trajectory(run) == story
    stored = stored_circuits(run)
    assert [one.step for one in stored] == STEPS and [one.discovery for one in stored] == found
    assert stored[0].request["settings"] == light(QUICK).model_dump() and not stored[0].complete
    assert story.points[1].split_half is not None


def test_the_newest_circuit_of_a_step_is_the_one_computed_last(run):
    assert newest_circuit(run) is None and newest_trajectory(run) is None and stored_circuits(run) == []
    discover_at(request(run))
    discover_at(request(run, settings=QUICK.model_copy(update={"seed": 3}).model_dump()))
    newest = newest_circuit(run, LAST)
    assert newest.request["settings"]["seed"] == 3 and newest.data["verdict"] == newest.discovery.verdict
    assert newest_circuit(run, 0) is None and newest_circuit(run, by_position=True) is None


def test_a_damaged_or_newer_result_is_refused_by_name(run):
    discover_at(request(run))
    (key,) = (key for key in run.analyses() if key.startswith("circuit-"))
    payload = run.analysis(key)
    run.write_analysis(key, {**payload, "step": "nine"})
    with pytest.raises(StoreError, match="step: expected int"):
        read_circuit(run, key)
    run.write_analysis(key, {**payload, "format": 2})
    with pytest.raises(StoreError, match="this program reads 1"):
        read_circuit(run, key)


def test_a_list_of_what_is_stored_needs_no_torch():
    code = "import sys; from circuits.stored import stored_circuits; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_two_processes_find_what_one_does(run, tmp_path):
    other = run_with_circuit(tmp_path / "other", tuple(STEPS))
    alone, _ = follow(run, STEPS, request(run), 1, lambda done, of: None)
    shared, story = follow(other, STEPS, request(other), 2, lambda done, of: None)
    assert story.failed == []
    assert [without_times(one) for one in shared] == [without_times(one) for one in alone]


def alive_in_group(group: int) -> list[str]:
    """Command names of the processes of a group that run; one that is ending has no command line any more."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            name, rest = stat.read_text().split("(", 1)[1].rsplit(") ", 1)
            state, _, its_group = rest.split()[:3]
            ending = state == "Z" or not (stat.parent / "cmdline").read_bytes()
            found += [name] if int(its_group) == group and not ending else []
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are counted in /proc")
def test_ctrl_c_ends_every_process_with_exit_code_130(run):
    line = ["circuit", "solved", "--store", str(run.path.parent), "--checkpoints", "all", "--workers", "2"]
    code = f"""
import multiprocessing, os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # where these tests run in the background it is ignored
def interrupt():
    while len(multiprocessing.active_children()) < 2:
        threading.Event().wait(0.05)
    os.killpg(0, signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
from interp.cli import main
code = main({line!r})
print(len(multiprocessing.active_children()), file=sys.stderr)
sys.exit(code)
"""
    started = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE, text=True)
    _, err = started.communicate(timeout=300)
    assert started.returncode == 130, err
    assert err.strip().splitlines()[-1] == "0"
    assert alive_in_group(started.pid) == []
