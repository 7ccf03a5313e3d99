"""The page on opening a checkpoint: its code runs from top to bottom, and its tables name what there is."""

import dataclasses
import re
import runpy
import typing
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch

from interp.adapters.hugging_face import FAMILIES
from interp.adapters.opened import Kind, Opened, Processing
from tests.unit.random_bridges import HUGGING_FACE, hugging_face, shaken
from tests.unit.small_lens import lens_model
from tests.unit.test_doors_nnsight import Net

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "open-a-checkpoint.md").read_text(encoding="utf-8")


def test_the_page_has_a_row_for_every_flag_attribute_and_architecture():
    rows = " ".join(line for line in PAGE.splitlines() if line.startswith("|"))
    names = [field.name for kind in (Processing, Opened) for field in dataclasses.fields(kind)]
    own = {"decoder", "name", "path"}  # in the text beside the table
    assert not [name for name in names if name not in own and f"`{name}`" not in rows]
    assert not [name for name in FAMILIES if f"`{name}`" not in rows]
    assert len(typing.get_args(Kind)) == 5, "the first table has five rows"


def test_code_of_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "path" / "to"
    hugging_face(*HUGGING_FACE["gpt2"]).save_pretrained(place / "model")
    for step in (0, 512):
        shaken(hugging_face(*HUGGING_FACE["neox"]), step).save_pretrained(place / "series" / f"step{step}")
    (place / "lens").mkdir()
    _, weights, config = lens_model("gpt2")
    lens = SimpleNamespace(state_dict=lambda: weights, cfg=SimpleNamespace(**config | {"dtype": torch.float32}))
    module = shaken(Net())
    clean, corrupted = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 4, 3]])
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    (tmp_path / "page.py").write_text(f"{code}\nagain = open_model('path/to/lens/model.pt')\n")
    given = {"torch": torch, "model": lens, "module": module, "clean": clean, "corrupted": corrupted}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = runpy.run_path("page.py", init_globals=given)
    out = capsys.readouterr().out
    assert "hugging face folder model float32 None" in out and "\n0 " in out and "\n512 " in out
    assert "torch.Size([1, 2, 2, 3]) full forwards through hooks" in out
    assert found["again"].kind == "transformer-lens state dict"
