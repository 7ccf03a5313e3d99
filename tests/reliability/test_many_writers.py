"""R9: many processes in one store lose no row and show no torn line; one run has one writer."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from interp.errors import RunExists, RunLocked, StoreError, UnknownName
from interp.run import Run, Store

HOLD = """
import sys
from interp.run import Store
with Store(sys.argv[1]).run(sys.argv[2]).writer() as writer:
    writer.status(state="running", step=5)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_writer(run: Run, store: Store):
    """Another process that holds the run until it is killed or its input is closed."""
    command = [sys.executable, "-c", HOLD, str(store.root), run.name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("rows", [100, pytest.param(250, marks=pytest.mark.slow)])
def test_eight_writers_and_two_readers_see_no_torn_line_and_lose_no_row(tmp_path: Path, rows: int):
    script = Path(__file__).with_name("many_writers.py")
    done = subprocess.run([sys.executable, str(script), str(tmp_path), str(rows)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"failed": 0, "rows": [rows] * 8}, done.stderr


def test_second_writer_is_refused_and_told_the_pid(run: Run, other_writer: subprocess.Popen):
    with pytest.raises(RunLocked, match=f"pid {other_writer.pid}"), run.writer():
        pytest.fail("a second writer got in")
    assert run.status().state == "running"


def test_second_writer_in_the_same_process_is_refused(run: Run):
    with run.writer(), pytest.raises(RunLocked, match=f"pid {os.getpid()}"), run.writer():
        pytest.fail("a second writer got in")


def test_run_that_is_being_written_is_not_removed(run: Run, store: Store, other_writer: subprocess.Popen):
    with pytest.raises(RunLocked):
        store.remove(run.name)
    assert store.names() == [run.name]


def test_killed_writer_frees_the_run_and_is_reported_as_died(run: Run, other_writer: subprocess.Popen):
    other_writer.send_signal(signal.SIGKILL)
    other_writer.wait()
    assert (run.status().state, run.status().step) == ("died", 5)
    assert b'"died"' not in (run.path / "status.json").read_bytes()
    with run.writer() as writer:
        assert run.status().state == "died", "another command holding the lock does not bring a trainer back"
        writer.status(state="running")
        assert run.status().state == "running"


def test_asking_for_the_status_never_makes_a_writer_fail(run: Run):
    with run.writer() as writer:
        writer.status(state="running")
    lock = run.path / "lock"
    asker = subprocess.Popen(
        [sys.executable, "-c", "import sys; from interp.lock import holder; from pathlib import Path\n"
         "print('go', flush=True)\nwhile True: holder(Path(sys.argv[1]))", str(lock)],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        asker.stdout.readline()
        for step in range(50):
            with run.writer() as writer:
                writer.metric({"step": step})
    finally:
        asker.kill()
        asker.communicate()
    assert len(run.metrics()) == 50


def test_name_is_taken_once_even_by_two_creators(store: Store, run: Run):
    with pytest.raises(RunExists, match="'tiny' exists"):
        store.create("tiny", run.config)
    assert sorted(path.name for path in store.root.iterdir()) == ["tiny"]


def test_removed_run_is_gone_and_its_name_is_free(store: Store, run: Run):
    config = run.config
    store.remove("tiny")
    assert (store.names(), list(store.root.iterdir())) == ([], [])
    with pytest.raises(UnknownName):
        store.run("tiny")
    with pytest.raises(StoreError), run.writer():
        pytest.fail("wrote into a removed run")
    store.create("tiny", config)
