"""Jobs outlive who started them, stop when asked, and say how they ended; the worker answers and survives defects."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from interp import job_process, jobs
from interp.cli import main
from interp.cli_jobs import run_of
from interp.errors import InterpError, JobError, RunNameError, StoreError, UnknownName, UsageError
from interp.processes import alive, birth, detach, end_within, wait_gone
from interp.run import Store
from interp.worker import Handlers, Warm, answer
from interp.worker_client import exchange, socket_path

SECONDS = 90.0
ENDLESS = ["train", "parity", "--name", "endless", "--set", "train.steps=10000000", "--set", "train.stop_accuracy=1.0"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("jobs") / "runs")


def until(claim: Callable[[], bool], seconds: float = SECONDS) -> bool:
    """True as soon as the claim holds; False if it does not within the time."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.05)):
        if claim():
            return True
        pause.wait(0.05)
    return False


@pytest.fixture(scope="module")
def endless(store: Store) -> jobs.Job:
    """A training that would never end, once its first checkpoint is there."""
    job = jobs.start(store, ENDLESS, run="endless")
    assert job.status().state == "starting"
    assert until(lambda: "endless" in store.names() and bool(store.run("endless").checkpoints()))
    return job


def test_a_training_runs_in_a_session_of_its_own_until_it_is_cancelled_and_can_be_resumed(store, endless):
    status = endless.status()
    assert (status.state, status.cancelling) == ("running", False)
    assert os.getsid(status.pid) == status.pid != os.getsid(0)
    with pytest.raises(JobError, match="'endless' is being worked on by job train-"):
        jobs.start(store, ENDLESS, run="endless")
    assert [one.id for one in jobs.active_jobs(store)] == [endless.id]
    ended = endless.cancel()
    assert (ended.state, ended.exit_code, ended.message) == ("cancelled", 130, "stopped by the user")
    assert not alive(status.pid, status.born)
    assert store.run("endless").status().state == "interrupted"
    assert "continue with --resume" in endless.log()
    assert endless.cancel() == ended == endless.status()  # asking again changes nothing


def test_a_killed_job_has_died_and_one_that_cannot_run_has_failed_with_its_reason(store):
    killed = jobs.start(store, ["train", "parity", "--name", "k", "--set", "train.steps=10000000"])
    failed = jobs.start(store, ["runs", "show", "nowhere"])
    done = jobs.start(store, ["runs", "ls"])
    status = killed.status()
    os.kill(status.pid, signal.SIGKILL)
    assert wait_gone(status.pid, status.born, SECONDS)
    assert (killed.status().state, killed.status().pid) == ("died", status.pid)
    assert until(lambda: not failed.status().active and not done.status().active)
    assert (failed.status().state, failed.status().exit_code) == ("failed", 2)
    assert failed.status().message.startswith("unknown run 'nowhere'")
    assert (done.status().state, done.status().exit_code) == ("done", 0), done.log()


def test_a_process_that_ignores_the_request_is_killed_after_the_grace(tmp_path):
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); "
    process = detach([sys.executable, "-c", code + "time.sleep(600)"], tmp_path / "log")
    born = birth(process.pid)
    assert until(lambda: "ready" in (tmp_path / "log").read_text())
    os.killpg(process.pid, signal.SIGTERM)
    assert not wait_gone(process.pid, born, 0.2)
    end_within(process.pid, born, 0.2)
    assert process.wait(SECONDS) == -signal.SIGKILL


def test_a_pid_given_to_another_process_is_not_taken_for_the_old_one():
    assert alive(os.getpid(), birth(os.getpid()))
    assert not alive(os.getpid(), "1")
    assert not alive(None, None)


def test_a_process_that_only_waits_to_be_reaped_is_gone():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    assert until(lambda: birth(process.pid) is None)
    assert process.wait() == 0


def planted(store: Store, name: str, **changes: object) -> jobs.Job:
    """A job folder as `start` leaves it, of a process that is this one."""
    job = jobs.Job(name, store.root / ".jobs" / name)
    job.path.mkdir(parents=True)
    spec = {"id": name, "kind": "train", "arguments": ["train"], "created": "2026-01-01T00:00:00Z", "format": 1}
    jobs.write_sealed(job.path / "job.json", spec)
    jobs.write_sealed(job.path / "status.json", {"format": 1, "state": "running", **changes})
    process = {"format": 1, "pid": os.getpid(), "born": birth(os.getpid())}
    jobs.write_sealed(job.path / "process.json", process)
    return job


def test_a_job_that_was_asked_to_stop_says_so_before_it_has_stopped(tmp_path):
    job = planted(Store(tmp_path), "train-x")
    assert not job.status().cancelling
    (job.path / "cancel").touch()
    assert (job.status().state, job.status().cancelling) == ("running", True)


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], int]]:
    """The job's own code in this process, with the signal handler put back afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    yield job_process.run
    signal.signal(signal.SIGTERM, before)


def test_a_wish_to_stop_that_came_before_the_process_is_kept(tmp_path, run_here):
    job = planted(Store(tmp_path), "train-x", state="starting")
    (job.path / "cancel").touch()
    assert run_here(job.path) == 130
    assert (job.status().state, job.status().exit_code) == ("cancelled", 130)


def test_a_defect_makes_the_job_failed_and_keeps_its_traceback(tmp_path, run_here, monkeypatch):
    def defect(arguments: list[str]) -> int:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(job_process, "main", defect)
    job = planted(Store(tmp_path), "train-x", state="starting")
    with pytest.raises(ZeroDivisionError):
        run_here(job.path)
    status = job.status()
    assert (status.state, status.exit_code) == ("failed", None)
    assert status.message == "a defect, see its log: ZeroDivisionError: by nothing"


def test_a_job_that_never_got_a_process_has_died(tmp_path):
    job = planted(Store(tmp_path), "train-x", state="starting")
    (job.path / "process.json").unlink()
    assert job.status().state == "died"


def test_a_damaged_job_is_named_and_hides_no_other(tmp_path, capsys):
    store = Store(tmp_path)
    planted(store, "train-1")
    damaged = planted(store, "train-2")
    (damaged.path / "status.json").write_text("{")
    with pytest.raises(StoreError, match=r"train-2.status\.json"):
        damaged.status()
    assert [one.id for one in jobs.active_jobs(store)] == ["train-1"]
    assert main(["jobs", "ls", "--json", "--store", str(tmp_path)]) == 0
    listed = {one["id"]: one["state"] for one in json.loads(capsys.readouterr().out)["jobs"]}
    assert listed == {"train-1": "running", "train-2": "damaged"}


@pytest.mark.parametrize("name", ["../runs", "a/b", "", ".hidden", "x" * 65])
def test_a_job_name_never_leaves_the_folder(tmp_path, name):
    with pytest.raises(RunNameError):
        jobs.job(Store(tmp_path), name)
    with pytest.raises(UsageError):
        jobs.start(Store(tmp_path), ["train"], run=name)
    assert not (tmp_path / ".jobs").exists()


def test_an_unknown_job_is_refused_and_jobs_are_no_runs(tmp_path):
    store = Store(tmp_path)
    planted(store, "train-1")
    with pytest.raises(UnknownName, match="unknown job 'train-2'; did you mean 'train-1'"):
        jobs.job(store, "train-2")
    assert store.names() == []


@pytest.mark.parametrize(
    ("line", "run"),
    [
        ("probe poly1 --what lens", "poly1"),
        ("report make poly1", "poly1"),
        ("train parity --init poly1", None),
        ("train parity --init poly1 --name new", "new"),
        ("tasks ls", None),
    ],
)
def test_the_run_of_a_job_is_the_one_that_its_command_names(line, run):
    assert run_of(tuple(line.split()), {"poly1"}) == run


def test_commands_start_list_and_cancel_a_job(tmp_path, capsys):
    where = ["--store", str(tmp_path)]
    assert main(["jobs", "ls", *where]) == 0
    assert "no jobs in" in capsys.readouterr().out
    assert main(["jobs", "start", *where, "--json", "train", "parity", "--set", "train.steps=10000000"]) == 0
    started = json.loads(capsys.readouterr().out)["job"]
    assert started["command"] == f"train parity --set train.steps=10000000 --store {tmp_path}"
    assert main(["jobs", "cancel", started["id"], *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["job"]["state"] == "cancelled"
    assert main(["jobs", "ls", *where]) == 0
    assert "cancelled" in capsys.readouterr().out
    assert main(["jobs", "log", started["id"], *where]) == 0


# The worker: what it answers, without a process.


def handlers() -> dict[str, Callable]:
    def refuse(warm: Warm, request: dict) -> dict:
        raise UsageError("give a head")

    def defect(warm: Warm, request: dict) -> dict:
        return {}["absent"]

    return {"twice": lambda warm, request: {"is": 2 * request["x"]}, "refuse": refuse, "defect": defect}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"name": "twice", "request": {"x": 4}}', {"is": 8}),
        (b'{"name": "refuse", "request": {}}', "give a head"),
        (b'{"name": "defect", "request": {}}', "a defect in the worker: KeyError"),
        (b'{"name": "twicf", "request": {}}', "unknown request 'twicf'; did you mean 'twice'?"),
        (b'{"name": "twice", "request": {"x": NaN}}', "a defect in the worker: ValueError"),
        (b"not JSON", "a defect in the worker: JSONDecodeError"),
        (b'{"request": {}}', "a defect in the worker: KeyError"),
    ],
)
def test_each_question_gets_one_answer_or_one_line(tmp_path, line, says):
    found = answer(Warm(Store(tmp_path)), handlers(), line)
    if isinstance(says, dict):
        assert found["answer"] == says
    else:
        assert says in found["error"]


def test_a_request_function_that_cannot_be_loaded_hides_no_other(tmp_path, monkeypatch):
    info = tmp_path / "extra-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[interp.worker]\nbroken = nowhere_at_all:answer\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = Handlers()
    assert {"broken", "checkpoint"} <= set(found)
    warm = Warm(Store(tmp_path))
    said = answer(warm, found, b'{"name": "broken", "request": {}}')["error"]
    assert "entry point broken = nowhere_at_all:answer" in said
    assert "unknown run 'x'" in answer(warm, found, b'{"name": "checkpoint", "request": {"run": "x"}}')["error"]


def test_what_is_kept_is_made_once_and_the_oldest_goes():
    warm, made = Warm(Store("nowhere")), []
    for key in (1, 1, *range(2, 66), 1):
        warm.keep((key,), lambda key=key: made.append(key))
    assert made == [1, *range(2, 66), 1]


# The worker: as a process.


@pytest.fixture(scope="module")
def worker(store: Store, endless: jobs.Job) -> Iterator[int]:
    """Pid of the worker of the store, started by the first question."""
    pid = jobs.ask(store, "ping", {}, timeout=SECONDS)["pid"]
    yield pid
    os.kill(pid, signal.SIGKILL)


def test_the_worker_stays_and_answers_about_a_run(store, worker):
    first = jobs.ask(store, "checkpoint", {"run": "endless", "step": 0}, timeout=SECONDS)
    assert first["step"] == 0
    assert first["weights"] > 1000
    assert jobs.ask(store, "ping", {})["pid"] == worker
    with pytest.raises(InterpError, match="unknown run 'nowhere'"):
        jobs.ask(store, "checkpoint", {"run": "nowhere"})
    with pytest.raises(InterpError, match="a defect in the worker: KeyError"):
        jobs.ask(store, "checkpoint", {})
    assert jobs.ask(store, "ping", {})["pid"] == worker


def test_two_starts_leave_one_worker(store, worker):
    path = socket_path(store)
    second = subprocess.run([sys.executable, "-m", "interp.worker", str(store.root), str(path)], timeout=SECONDS)
    assert second.returncode == 0  # it saw that the place is taken
    assert jobs.ask(store, "ping", {})["pid"] == worker


def test_a_worker_that_is_gone_is_replaced_at_the_next_question(store, worker):
    other = Store(store.root / "elsewhere")
    pid = jobs.ask(other, "ping", {}, timeout=SECONDS)["pid"]
    assert pid != worker
    born = birth(pid)
    os.kill(pid, signal.SIGKILL)
    assert wait_gone(pid, born, SECONDS)
    again = jobs.ask(other, "ping", {}, timeout=SECONDS)["pid"]
    assert again not in (pid, worker)
    os.kill(again, signal.SIGKILL)


def test_an_answer_that_does_not_come_in_time_is_said_with_the_log(store, worker):
    os.kill(worker, signal.SIGSTOP)
    try:
        with pytest.raises(JobError, match=r"no answer within 0 s; the worker goes on, ask again. Its log: .*\.log"):
            jobs.ask(store, "ping", {}, timeout=0.3)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert jobs.ask(store, "ping", {}, timeout=SECONDS)["pid"] == worker


def test_the_socket_lies_where_only_this_user_can_go(store, tmp_path, monkeypatch):
    folder = socket_path(store).parent
    assert folder.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    open_folder = tmp_path / folder.name
    open_folder.mkdir(mode=0o777)
    open_folder.chmod(0o777)
    with pytest.raises(JobError, match="expected a folder of mode 0700"):
        socket_path(store)
    open_folder.rmdir()
    open_folder.symlink_to(tmp_path)
    with pytest.raises(JobError, match="expected a folder of mode 0700"):
        socket_path(store)


def test_requests_that_are_no_json_or_too_large_are_refused_before_anything_starts(tmp_path):
    store = Store(tmp_path / "none")
    with pytest.raises(JobError, match="not plain JSON"):
        jobs.ask(store, "ping", {"x": float("nan")})
    with pytest.raises(JobError, match="not plain JSON"):
        jobs.ask(store, "ping", {"x": Path("a")})
    with pytest.raises(JobError, match="at most"):
        exchange(store, b"x" * (2 << 20), 1.0)
    assert not socket_path(store).exists()
