"""R8: no file of somebody else's model can run code, take the reader's time or memory, or lead it out of its folder.

Like test_hostile_files.py, it makes hostile pickles and never loads one.
"""

import collections
import io
import json
import os
import pickle
import shutil
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from interp.adapters.opening import open_model
from interp.adapters.pickled_data import run_program
from interp.errors import CheckpointError, InterpError, StoreError
from interp.rng import generator

SECONDS = 5.0  # of processor time, for the largest program that is accepted; everything else takes milliseconds
ARGS = {"n_layer": 1, "n_head": 2, "n_embd": 4, "block_size": 3, "vocab_size": 5, "bias": False, "dropout": 0.0}


def nano_weights() -> dict[str, torch.Tensor]:
    stream = torch.Generator().manual_seed(0)
    shapes = {"wte.weight": (5, 4), "wpe.weight": (3, 4), "ln_f.weight": (4,), "h.0.ln_1.weight": (4,)}
    shapes |= {"h.0.ln_2.weight": (4,), "h.0.attn.c_attn.weight": (12, 4), "h.0.attn.c_proj.weight": (4, 4)}
    shapes |= {"h.0.mlp.c_fc.weight": (16, 4), "h.0.mlp.c_proj.weight": (4, 16)}
    return {f"transformer.{key}": torch.randn(shape, generator=stream) for key, shape in shapes.items()}


def nano_file(path: Path, **extra: object) -> Path:
    torch.save({"model": nano_weights(), "model_args": ARGS, "iter_num": 1, **extra}, path)
    return path


def in_archive(program: bytes, path: Path, **options: object) -> Path:
    """A file laid out as torch.save does, around a given program."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", b"3\n")
    return path


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


class HasState:
    """Sets attributes when it is unpickled."""

    def __init__(self):
        self.a = 1


def hostile(marker: Path) -> dict[str, object]:
    """Values that run code in a careless loader, by what they do."""
    return {
        "makes a folder": Calls(os.mkdir, str(marker)),
        "calls the shell": Calls(os.system, f"mkdir {marker}"),
        "evaluates text": Calls(eval, f"__import__('os').mkdir({str(marker)!r})"),
        "reads an attribute by name": Calls(getattr, "text", "upper"),
        "loads a file again": Calls(torch.load, str(marker)),
        "imports a module": Calls(__import__, "antigravity"),
        "is an object with state": HasState(),
        "is a function": os.mkdir,
        "is a partial application": Calls(__import__("functools").partial, os.mkdir),
        "is a counter, which is a dictionary": collections.Counter("aab"),
        "is a default dictionary": collections.defaultdict(os.getcwd),
    }


@pytest.mark.parametrize("what", hostile(Path("marker")))
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_checkpoint_that_holds_more_than_data_is_refused_and_nothing_is_run(tmp_path, what, protocol):
    marker = tmp_path / "executed"
    value = {"model": nano_weights(), "model_args": ARGS, "extra": hostile(marker)[what]}
    torch.save(value, tmp_path / "ckpt.pt", pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match=r"ckpt\.pt: refused, nothing of it was run: "):
        open_model(tmp_path / "ckpt.pt")
    assert not marker.exists()


def test_the_name_that_a_checkpoint_wants_is_said(tmp_path):
    path = nano_file(tmp_path / "ckpt.pt", extra=Calls(os.mkdir, str(tmp_path / "executed")))
    with pytest.raises(CheckpointError, match=r"it wants (posix|os)\.mkdir, which is code or an object"):
        open_model(path)


def test_the_calls_of_these_tests_would_run_code(tmp_path):
    function, arguments = Calls(os.mkdir, str(tmp_path / "executed")).__reduce__()
    function(*arguments)
    assert (tmp_path / "executed").exists()


def test_the_same_file_without_the_call_is_read(tmp_path):
    assert open_model(nano_file(tmp_path / "ckpt.pt", note="plain", rates=[1e-3, None, True])).step == 1


@pytest.mark.parametrize("kind", ["pickle", "old torch file", "text", "nothing", "zip without a program"])
def test_what_is_no_file_of_torch_save_is_refused_and_nothing_is_run(tmp_path, kind):
    path, marker = tmp_path / "ckpt.pt", tmp_path / "executed"
    bomb = Calls(os.mkdir, str(marker))
    if kind == "old torch file":
        torch.save({"model": bomb}, path, _use_new_zipfile_serialization=False)
    elif kind == "zip without a program":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme", b"")
    else:
        path.write_bytes({"pickle": pickle.dumps(bomb), "text": b"weights", "nothing": b""}[kind])
    with pytest.raises(CheckpointError, match=r"ckpt\.pt: "):
        open_model(path)
    assert not marker.exists()


def laughs(levels: int) -> bytes:
    """A list of ten lists of ten lists ..., in a few hundred bytes."""
    value: object = "ha"
    for _ in range(levels):
        value = [value] * 10
    return pickle.dumps({"model": value, "model_args": ARGS}, 2)


def nested_key() -> bytes:
    """A dictionary whose key is a tuple of the same tuple twice, sixty levels deep: hashing it takes 2^60 steps."""
    deep = b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(60))
    return b"\x80\x02}(K\x01q\x00" + deep + b"K\x01u."


def endless_own() -> bytes:
    """A list that holds itself."""
    return b"\x80\x02}(X\x05\x00\x00\x00model]q\x00h\x00aX\x0a\x00\x00\x00model_args}u."


PROGRAMS = {
    "lists that multiply": lambda: laughs(12),
    "lists nested deeper than any checkpoint": lambda: laughs(40),
    "a list that holds itself": endless_own,
    "a key that takes for ever to hash": nested_key,
    "a set of such keys": lambda: (
        nested_key().replace(b"}(K\x01q\x00", b"\x8f(K\x01q\x00").replace(b"K\x01u.", b"\x90.")
    ),
    "three million instructions": lambda: b"\x80\x02" + b"N" * 3_000_000 + b".",
    "a program of 100 MB": lambda: b"\x80\x02" + b"N" * (100 << 20) + b".",
    "no end": lambda: b"\x80\x02}",
    "an empty stack": lambda: b"\x80\x02.",
    "a memo that is not there": lambda: b"\x80\x02h\x07.",
    "a mark that is not there": lambda: b"\x80\x02u.",
    "a number of a million digits": lambda: b"\x80\x02I" + b"9" * 1_000_000 + b"\n.",
    "a huge number as a key": lambda: b"\x80\x02}\x8b" + (5000).to_bytes(4, "little") + b"\x7f" * 5000 + b"Ns.",
    "a storage outside the file": lambda: b"\x80\x02X\x03\x00\x00\x00../Q.",
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_program_that_would_not_end_is_refused_in_time(tmp_path, kind):
    path = in_archive(PROGRAMS[kind](), tmp_path / "ckpt.pt")
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"ckpt\.pt|model: "):
        open_model(path)
    assert time.process_time() - start < SECONDS


def tensor_program(count: int, offset: int, size: tuple, stride: tuple, record: str = "0") -> bytes:
    """The program of {"w": one tensor} as torch.save writes it."""

    def text(value: str) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    def whole(value: int) -> bytes:
        return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)

    def several(values: tuple) -> bytes:
        return b"(" + b"".join(whole(value) for value in values) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(record) + text("cpu") + whole(count) + b"tQ"
    arguments = storage + whole(offset) + several(size) + several(stride) + b"\x89ccollections\nOrderedDict\n)R"
    return b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tRs."


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (tensor_program(4, 0, (5,), (1,)), "reaches out of a storage"),
        (tensor_program(4, 3, (2,), (1,)), "reaches out of a storage"),
        (tensor_program(4, 0, (2, 2), (1, 9)), "reaches out of a storage"),
        (tensor_program(4, 0, (1 << 40,), (0,)), "reaches out of a storage"),
        (tensor_program(4, -1, (2,), (1,)), "list of sizes"),
        (tensor_program(4, 0, (-2,), (1,)), "list of sizes"),
        (tensor_program(4, 0, (2,), (1, 1)), "as many strides"),
        (tensor_program(1 << 40, 0, (1 << 40,), (1,)), "needs 4398046511104 bytes in archive/data/0, found 16"),
        (tensor_program(4, 0, (4,), (1,), "7"), "found no such record"),
        (tensor_program(4, 0, (4,), (1,), "../../../etc/passwd"), "in no record of this file"),
        (tensor_program(4, 0, (4,), (1,)), "no known architecture"),
    ],
)
def test_a_tensor_stays_inside_its_record(tmp_path, program, message):
    path = in_archive(program, tmp_path / "ckpt.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(InterpError, match=message):
        open_model(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = in_archive(pickle.dumps({"a": 1}, 2), tmp_path / "ckpt.pt")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(64 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match=r"data/0 is compressed, which torch\.save never does"):
        open_model(path)


def test_two_programs_in_one_file_are_refused(tmp_path):
    path = in_archive(pickle.dumps({"a": 1}, 2), tmp_path / "ckpt.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", pickle.dumps({"b": 1}, 2))
    with pytest.raises(CheckpointError, match=r"expected one data\.pkl"):
        open_model(path)


def test_every_damage_to_a_checkpoint_is_a_typed_error_or_leaves_the_weights_as_they_were(tmp_path):
    """A byte is changed at 300 places, the file is cut at 60: nothing but an InterpError, and never other numbers."""
    whole = nano_file(tmp_path / "whole.pt").read_bytes()
    expected = open_model(tmp_path / "whole.pt")
    stream = generator(0, "damage")
    places = torch.randint(len(whole), (300,), generator=stream).tolist()
    masks = torch.randint(1, 256, (300,), generator=stream).tolist()
    damaged = [whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :] for at, mask in zip(places, masks, strict=True)]
    damaged += [whole[: len(whole) * part // 60] for part in range(60)]
    refused = 0
    for data in damaged:
        (tmp_path / "ckpt.pt").write_bytes(data)
        try:
            found = open_model(tmp_path / "ckpt.pt")
        except InterpError:
            refused += 1
            continue
        assert torch.equal(found.decoder.W_E, expected.decoder.W_E)
    assert refused > 150


@pytest.fixture
def folder(tmp_path) -> Path:
    """A Hugging Face folder with a one-layer GPT-2."""
    place = tmp_path / "model"
    place.mkdir()
    body = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 4, "n_positions": 3, "vocab_size": 5}
    (place / "config.json").write_text(json.dumps(body))
    weights = dict(nano_weights())
    turned = [key for key in weights if ".c_" in key]
    weights |= {key: weights[key].T.contiguous() for key in turned}
    weights |= {key.replace("weight", "bias"): torch.zeros(weights[key].shape[-1]) for key in turned}
    norms = [key for key in weights if ".ln_" in key]
    save_file(weights | {key.replace("weight", "bias"): torch.zeros(4) for key in norms}, place / "model.safetensors")
    return place


def test_the_folder_of_these_tests_is_read(folder):
    assert open_model(folder).decoder.d_model == 4


ODD: list = [None, -1, 0, 1.5, "x", "", [], {}, True, 10**12, 1e308, [1], {"a": 1}, 1 << 31]


def test_every_odd_value_in_a_configuration_is_a_typed_error_or_a_model(folder):
    body = json.loads((folder / "config.json").read_text())
    outcomes = collections.Counter()
    for key in [*body, "activation_function", "layer_norm_epsilon", "tie_word_embeddings", "quantization_config"]:
        for value in ODD:
            (folder / "config.json").write_text(json.dumps(body | {key: value}))
            try:
                outcomes["model"] += open_model(folder).decoder.d_model == 4
            except InterpError as error:
                outcomes[str(folder) in str(error)] += 1
    assert outcomes["model"] > 5 and outcomes[True] > 100 and not outcomes[False], "errors name the file"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_links_that_lead_out_of_the_folder_pipes_and_folders_are_refused(folder, tmp_path, name):
    path, outside = folder / name, tmp_path / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(StoreError, match=rf"{name}: is a link that leads out of"):
        open_model(folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StoreError, match=rf"{name}: expected a plain file"):
        open_model(folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match=rf"{name}: expected a plain file"):
        open_model(folder)


def test_a_link_to_a_model_given_by_the_user_is_followed(folder, tmp_path):
    (tmp_path / "latest").symlink_to(folder)
    assert open_model(tmp_path / "latest").name == "model"


@pytest.mark.parametrize(
    "place", ["../outside.safetensors", "/etc/passwd", "sub/model.safetensors", "config.json", ".."]
)
def test_an_index_that_names_a_file_elsewhere_is_refused(folder, place):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(CheckpointError, match=r"index\.json: .* is no name of a weight file"):
        open_model(folder)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_found_by_key(folder, bad):
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.0.mlp.c_fc.weight"][1, 2] = bad
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"c_fc\.weight has 1 of 64 values that are NaN or infinite"):
        open_model(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn], ids=str)
def test_quantised_weights_are_refused_by_key(folder, dtype):
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"].to(dtype)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"wte\.weight is of type .*not quantised"):
        open_model(folder)


def test_weights_that_are_no_safetensors_are_refused_even_where_a_pickle_lies_beside(folder, tmp_path):
    marker = tmp_path / "executed"
    (folder / "model.safetensors").write_bytes(pickle.dumps(Calls(os.mkdir, str(marker))))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Calls(os.mkdir, str(marker))))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a safetensors file"):
        open_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: not a file of torch\.save"):
        open_model(folder)
    assert not marker.exists()


def test_code_of_a_model_folder_is_never_imported(folder, tmp_path):
    marker = tmp_path / "executed"
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    body = json.loads((folder / "config.json").read_text())
    evil = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(body | {"auto_map": evil}))
    assert open_model(folder).decoder.d_model == 4
    (folder / "config.json").write_text(json.dumps(body | {"auto_map": evil, "model_type": "evil"}))
    with pytest.raises(InterpError, match="unknown model_type 'evil'"):
        open_model(folder)
    assert not marker.exists()


def test_names_from_a_file_cannot_steer_the_terminal(folder, tmp_path):
    torch.save({"model\x1b[2J": 1, "model_args": ARGS, "model": {"w\x1b[31m": torch.ones(1)}}, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError) as raised:
        open_model(tmp_path / "ckpt.pt")
    shutil.copy(folder / "config.json", tmp_path)
    save_file({"transformer.\x1b]0;x": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "ckpt.pt").unlink()
    with pytest.raises(CheckpointError) as again:
        open_model(tmp_path)
    assert "\x1b" not in str(raised.value) + str(again.value)


def test_a_plain_program_is_read_as_what_it_says():
    value = {"a": [1, 2.5, None, True, "text"], "b": {"c": (1, 2)}, "d": collections.OrderedDict(x=1)}
    for protocol in (2, 3, 4, 5):
        assert run_program(pickle.dumps(value, protocol)) == value
    assert run_program(pickle.dumps(io.DEFAULT_BUFFER_SIZE, 2)) == io.DEFAULT_BUFFER_SIZE
