"""The `interp` command: exit codes, one-line errors, mounted sub-commands, seeds and settings."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest
import typer

from interp.cli import main, mounted, report
from interp.config import RunConfig
from interp.errors import ConfigError, Diverged, Interrupted, StoreError, UsageError
from interp.run import Store
from interp.run_config import assemble, parse_seeds
from interp.sweep import share


def one_line_error(capsys) -> str:
    """The error line; fails unless stderr is exactly that line and stdout is empty."""
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert out == ""
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("trian", "Did you mean 'train'?"),
        ("tasks show pariti", "unknown task 'pariti'; did you mean 'parity'?"),
        ("train pariti", "unknown task 'pariti'; did you mean 'parity'?"),
        ("train parity --set train.lr=nan", "train.lr: Input should be a finite number"),
        ("train parity --set train.lrr=1", "unknown key 'train.lrr'; did you mean 'train.lr'?"),
        ("train parity --set task_params.max_length=-3", "max_length: Input should be greater than or equal to 1"),
        ("train parity --set task=polynomial", "the task is the first argument (parity)"),
        ("train parity --set nonsense", "expected key=value"),
        ("train parity --seed -1", "'--seed'"),
        ("train parity --seed x", "'--seed'"),
        ("train parity --seeds 5-1", "runs backwards"),
        ("train parity --seeds 1 --seed 1", "give --seed or --seeds, not both"),
        ("train parity --jobs 2", "--jobs is for several runs"),
        ("train parity -c missing.toml", "missing.toml: cannot be read"),
        ("train parity --init nowhere", "unknown run 'nowhere'"),
        ("train parity --name ../escape", "../escape"),
        ("train parity --resume --name nowhere", "unknown run 'nowhere'"),
        ("patch nowhere", "unknown run 'nowhere'"),
        ("patch nowhere --by position", "--by position: names no activation"),
        ("patch nowhere --n 1", "'--n'"),
        ("runs show nowhere", "unknown run 'nowhere'; known: none yet"),
        ("runs rm nowhere --yes", "unknown run 'nowhere'"),
        ("runs compare a", "needs at least two runs"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2_and_writes_nothing(line, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    assert says in one_line_error(capsys)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a key"), 2),
        (StoreError("a folder"), 1),
        (Diverged("step 3: loss is not finite"), 1),
        (Interrupted("stopped at step 5"), 130),
        (KeyboardInterrupt(), 130),
        (typer.Abort(), 130),
        (PermissionError(13, "Permission denied", "runs"), 1),
    ],
)
def test_each_error_has_its_exit_code(error, code, capsys):
    assert report(error) == code
    one_line_error(capsys)


def test_an_unexpected_exception_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        report(ZeroDivisionError("a defect"))


def test_control_characters_of_a_message_are_shown_not_obeyed(capsys):
    report(UsageError("name \x1b[31mred\nsecond line \u202e"))
    assert one_line_error(capsys) == "error: name \\x1b[31mred second line \\u202e"


def test_long_errors_stay_on_one_line(capsys):
    report(UsageError("word " * 200))
    assert len(one_line_error(capsys)) > 900


def test_traceback_option_works_at_any_position(capsys):
    assert main(["tasks", "show", "nothing", "--traceback"]) == 2
    _, err = capsys.readouterr()
    assert "Traceback" in err
    assert err.rstrip().splitlines()[-1].startswith("error: unknown task 'nothing'")


def test_traceback_can_be_asked_for_by_environment(capsys, monkeypatch):
    monkeypatch.setenv("INTERP_TRACEBACK", "1")
    assert main(["tasks", "show", "nothing"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_no_arguments_and_help_and_version_succeed(capsys):
    for arguments in ([], ["--help"], ["-h"], ["runs", "--help"]):
        assert main(arguments) == 0
        assert "Usage: interp" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("interp 20")


def test_missing_commands_of_a_package_cost_a_warning_only(tmp_path, monkeypatch, capsys):
    info = tmp_path / "extra-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[interp.commands]\nabsent = extra_absent:COMMANDS\nextra = extra_commands:COMMANDS\n"
    )
    (tmp_path / "extra_commands.py").write_text(
        "def greet():\n    print('hello')\n\nCOMMANDS = {'greet': greet, 'train': greet}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    commands = mounted(taken={"train"})
    assert "greet" in commands
    assert "train" not in commands
    err = capsys.readouterr().err
    assert "commands of absent (extra_absent:COMMANDS) are missing" in err
    assert "command 'train' of extra (extra_commands:COMMANDS) is ignored" in err
    assert main(["greet"]) == 0
    assert capsys.readouterr().out == "hello\n"


def test_output_into_a_closed_pipe_ends_without_a_traceback():
    command = f"{sys.executable} -m interp tasks ls | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def interrupted(store, more: tuple[str, ...], names: tuple[str, ...]) -> tuple[int, str]:
    """Exit code and stderr of an endless training that gets Ctrl-C once each named run has trained 64 steps."""
    settings = ("train.steps=1000000", "data.per_length=16", "train.stop_accuracy=1.0", "task_params.max_length=3")
    line = ["train", "parity", "--store", str(store), *more, *(f"--set={setting}" for setting in settings)]
    child = subprocess.Popen([sys.executable, "-m", "interp", *line], stderr=subprocess.PIPE, text=True)
    trained = [store / name / "checkpoints" / "step-00000064" for name in names]
    while not all(path.exists() for path in trained):
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=0.05)
            break
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    return child.returncode, err


def test_ctrl_c_exits_130_without_a_traceback(tmp_path):
    code, err = interrupted(tmp_path, (), ("parity-s0",))
    assert code == 130, err
    assert "Traceback" not in err
    assert err.rstrip().splitlines()[-1].startswith("error: stopped at step")


@pytest.mark.slow
def test_ctrl_c_leaves_every_run_of_a_sweep_resumable(tmp_path):
    code, err = interrupted(tmp_path, ("--seeds", "0-3", "--jobs", "2"), ("parity-s0", "parity-s1"))
    assert code == 130, err
    assert "Traceback" not in err
    store = Store(tmp_path)
    assert [(name, store.run(name).status().state) for name in store.names()] == [
        ("parity-s0", "interrupted"),
        ("parity-s1", "interrupted"),
    ]


def test_colour_is_off_when_asked_and_in_pipes(python):
    done = python("from interp.cli import main; main(['trian'])")
    assert "error: No such command" in done.stderr
    assert "\x1b[" not in done.stderr


def test_seeds_are_read_in_the_order_given():
    assert parse_seeds("0-3") == [0, 1, 2, 3]
    assert parse_seeds("7, 1-2,5") == [7, 1, 2, 5]


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "2-1", "1,1", "0-3,2", "1.5", "0-99999999"])
def test_seeds_that_make_no_sense_are_refused(text):
    with pytest.raises(UsageError, match="--seeds"):
        parse_seeds(text)


def test_later_settings_win_over_earlier_ones(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nlr = 0.5\nsteps = 7\n[model]\nd_model = 8\n")
    base = RunConfig(task="parity", seed=3)
    config = assemble(base, file=file, assignments=["train.lr=0.25"], seed=4)
    assert (config.train.lr, config.train.steps, config.model.d_model, config.seed) == (0.25, 7, 8, 4)
    assert config.train.batch_size == base.train.batch_size


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[train]\nlrr = 1\n", "unknown key 'train.lrr'; did you mean 'train.lr'?"),
        ("task = 'polynomial'\n", "task is 'polynomial', but the command line says 'parity'"),
        ("[train\n", "not valid TOML"),
        ("[train]\nlr = 1979-05-27\n", "train.lr"),
    ],
)
def test_a_wrong_configuration_file_is_named_with_the_key(tmp_path, text, says):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        assemble(RunConfig(task="parity"), file=file)
    assert "mine.toml" in str(caught.value)
    assert says in str(caught.value)


def test_solved_share_has_the_textbook_interval():
    assert (share(8, 10).low, share(8, 10).high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    exact = share(10, 10, "clopper-pearson")
    assert (exact.low, exact.high) == pytest.approx((0.025 ** (1 / 10), 1.0))
    assert (share(0, 0).low, share(0, 0).high) == (0.0, 1.0)
