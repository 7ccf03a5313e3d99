"""R23: a configuration survives every way out and in, and a wrong key names the nearest right one."""

import json
import string
import tomllib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interp.config import (
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    canonical_json,
    merged,
    parse_assignment,
    read_toml,
    validated,
)
from interp.errors import ConfigError
from interp.jsonfile import sealed, unsealed

COUNT = st.integers(1, 10**6)
POSITIVE = st.floats(1e-300, 1e300)
SHARE = st.floats(0, 1, exclude_max=True)
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def model_configs(draw: st.DrawFn) -> ModelConfig:
    heads, width = draw(st.integers(1, 8)), 2 * draw(st.integers(1, 32))
    positions = draw(st.sampled_from(["learned", "rotary", "none"]))
    norm = draw(st.sampled_from(["layer", "rms", "none"]))
    return ModelConfig(
        n_layers=draw(st.integers(1, 8)),
        n_heads=heads,
        d_model=heads * width,
        d_head=draw(st.sampled_from([0, width])),
        d_mlp=draw(st.integers(0, 512)),
        norm=norm,
        norm_eps=draw(POSITIVE),
        embed_norm=norm != "none" and draw(st.booleans()),
        residual="standard" if norm == "none" else draw(st.sampled_from(["standard", "normed"])),
        positions=positions,
        pos_dim=draw(st.integers(0, heads * width)) if positions == "learned" else 0,
        activation=draw(st.sampled_from(["gelu", "relu", "swiglu"])),
        dropout=draw(SHARE),
        frozen=tuple(draw(st.lists(TEXT, max_size=3))),
    )


TRAIN = st.builds(
    TrainConfig,
    steps=st.integers(0, 10**9),
    batch_size=COUNT,
    optimizer=st.sampled_from(["adam", "adamw", "sgd"]),
    lr=POSITIVE,
    betas=st.tuples(SHARE, SHARE),
    weight_decay=st.floats(0, 1e10),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    rolling_seconds=POSITIVE,
    checkpoint_ratio=st.floats(1, 1e9, exclude_min=True),
)
CONFIGS = st.builds(
    RunConfig,
    task=TEXT,
    task_params=st.dictionaries(TEXT, PLAIN, max_size=3),
    seed=st.integers(0, 2**64),
    init=st.none() | TEXT,
    data=st.builds(DataConfig, per_length=st.integers(2, 10**6), train_share=st.floats(0.01, 0.99)),
    model=model_configs(),
    train=TRAIN,
)
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


def require_round_trip(config: RunConfig) -> None:
    values = config.model_dump(mode="json")
    assert validated(RunConfig, json.loads(canonical_json(values)), "test") == config
    back = validated(RunConfig, unsealed(sealed(values, "test"), "test"), "test")
    assert back == config
    assert back.hash() == config.hash()


@given(config=CONFIGS)
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=QUIET)
def test_config_survives_json_out_and_in(config: RunConfig):
    require_round_trip(config)


@pytest.mark.slow
@given(config=CONFIGS)
@settings(max_examples=2000, deadline=None, derandomize=True, suppress_health_check=QUIET)
def test_two_thousand_configs_survive_json_out_and_in(config: RunConfig):
    require_round_trip(config)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"task": "binary_copy"}, {"train": TrainConfig(lr=1e-3)}, {"init": "a"}]
)
def test_any_change_changes_the_hash_and_none_does_not(change: dict):
    config = RunConfig(task="parity")
    assert config.hash() == RunConfig(task="parity").hash()
    assert config.model_copy(update=change).hash() != config.hash()


def known_keys() -> list[str]:
    sections = {"data": DataConfig, "model": ModelConfig, "train": TrainConfig}
    return [*RunConfig.model_fields, *(f"{s}.{name}" for s, cls in sections.items() for name in cls.model_fields)]


def misspelt(key: str, generator: torch.Generator) -> str:
    """The last part of a key with one letter lost, doubled, swapped with its neighbour or replaced."""
    section, dot, name = key.rpartition(".")
    place, kind = (int(torch.randint(n, (), generator=generator)) for n in (len(name), 4))
    letter = string.ascii_lowercase[int(torch.randint(26, (), generator=generator))]
    pair = name[place : place + 2][::-1]
    changed = [name[place + 1 :], name[place] + name[place:], pair + name[place + 2 :], letter + name[place + 1 :]][
        kind
    ]
    return f"{section}{dot}{name[:place]}{changed}"


def test_five_hundred_misspelt_keys_each_name_the_nearest_known_key():
    generator, known, tried = torch.Generator().manual_seed(5), known_keys(), 0
    while tried < 500:
        key = known[int(torch.randint(len(known), (), generator=generator))]
        wrong = misspelt(key, generator)
        if wrong in known or wrong.endswith(".") or not wrong:
            continue
        values = merged({"task": "parity"}, [(wrong.split("."), 1)])
        with pytest.raises(ConfigError) as caught:
            validated(RunConfig, values, "run.toml")
        message = str(caught.value)
        assert message.startswith(f"run.toml: unknown key {wrong!r}; did you mean ")
        assert edits(wrong, message.rsplit("'", 2)[1]) <= edits(wrong, key), message
        assert "\n" not in message
        tried += 1


def edits(a: str, b: str) -> int:
    """Fewest insertions, deletions, replacements and swaps of neighbours from `a` to `b`."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            best = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


def test_edit_distance_of_hand_worked_cases():
    assert [edits(*pair) for pair in [("lr", "lr"), ("lr", "rl"), ("step", "steps"), ("seed", "lead")]] == [0, 1, 1, 2]


def test_key_with_nothing_near_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown key 'zzz'; known: .*data.*seed.*train"):
        validated(RunConfig, {"task": "parity", "zzz": 1}, "run.toml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.lr", float("nan")), ("train.lr", float("inf")), ("train.lr", 0), ("train.lr", -1e-3),
        ("train.lr", "fast"),
        ("train.steps", -1), ("train.steps", 1.5), ("train.batch_size", 0), ("train.optimizer", "lion"), ("seed", -1),
        ("seed", None), ("data.train_share", 1.0), ("data.per_length", 1), ("model.n_layers", 0), ("model.n_heads", 3),
        ("model.norm", "batch"), ("model.dropout", 1.0), ("model.pos_dim", 33), ("model.frozen", "embed"), ("task", 3),
        ("train", 3), ("format", 2), ("train.checkpoint_ratio", 1.0), ("task_params", [1]),
    ],
)  # fmt: skip
def test_bad_value_is_one_line_that_names_file_and_key(key: str, value: object):
    values: dict = {"task": "parity"}
    section, _, name = key.rpartition(".")
    (values.setdefault(section, {}) if section else values)[name] = value
    with pytest.raises(ConfigError) as caught:
        validated(RunConfig, values, "run.toml")
    message = str(caught.value)
    assert message.startswith("run.toml: ") and "\n" not in message and len(message) < 300
    assert key.split(".")[0] in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("train.lr=3e-4", ["train", "lr"], 3e-4),
        ("seed=7", ["seed"], 7),
        ("model.tied=true", ["model", "tied"], True),
        ("train.betas=[0.9, 0.99]", ["train", "betas"], [0.9, 0.99]),
        ("task=parity", ["task"], "parity"),
        ("init = old run ", ["init"], "old run"),
        ("init=a=b", ["init"], "a=b"),
        ('task="parity"', ["task"], "parity"),
    ],
)
def test_assignment_is_read_as_toml_or_else_as_text(text: str, path: list[str], value: object):
    assert parse_assignment(text) == (path, value)


@pytest.mark.parametrize("text", ["", "train.lr", "=3", "  =3"])
def test_assignment_without_key_or_value_is_refused(text: str):
    with pytest.raises(ConfigError, match="expected key=value"):
        parse_assignment(text)


def test_merging_leaves_the_original_and_refuses_a_value_as_a_section():
    values = {"train": {"lr": 1.0}}
    assert merged(values, [(["train", "steps"], 2), (["data", "per_length"], 3)]) == {
        "train": {"lr": 1.0, "steps": 2},
        "data": {"per_length": 3},
    }
    assert values == {"train": {"lr": 1.0}}
    with pytest.raises(ConfigError, match="'lr' is a value, not a section"):
        merged(values, [(["train", "lr", "x"], 1)])


@pytest.mark.parametrize(
    ("data", "reason"), [(b"a = ", "not valid TOML"), (b"a = '\xff'", "not valid TOML"), (None, "cannot be read")]
)
def test_unreadable_toml_is_one_error_that_names_the_file(tmp_path: Path, data: bytes | None, reason: str):
    path = tmp_path / "run.toml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"run\.toml: {reason}"):
        read_toml(path)


def test_toml_file_gives_the_same_config_as_python(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text(
        'task = "parity"\nseed = 3\n[train]\nlr = 1e-3\nbetas = [0.9, 0.95]\n[model]\nfrozen = ["embed.*"]\n'
    )
    expected = RunConfig(
        task="parity", seed=3, train=TrainConfig(lr=1e-3, betas=(0.9, 0.95)), model=ModelConfig(frozen=("embed.*",))
    )
    assert validated(RunConfig, read_toml(path), str(path)) == expected
    assert tomllib.loads(path.read_text())["train"]["lr"] == expected.train.lr
