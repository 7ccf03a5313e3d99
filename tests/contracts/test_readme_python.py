"""The Python block of the README runs as it stands, on a small run."""

import re
import runpy

from interp.cli import main

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
TINY = ["--set=task_params.max_length=4", "--set=model.d_model=16", "--set=train.steps=10", "--set=data.per_length=32"]


def test_the_python_of_the_readme_prints_the_headline_of_a_run(root, tmp_path, monkeypatch, capsys):
    (block,) = BLOCK.findall((root / "README.md").read_text(encoding="utf-8"))
    assert len([line for line in block.splitlines() if line.strip()]) <= 5
    (tmp_path / "readme.py").write_text(block, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "parity", *TINY, "--name", "demo", "--quiet"]) == 0
    capsys.readouterr()
    runpy.run_path("readme.py")
    assert re.search(r"p = [\d.e-]+, smallest possible 0\.002, n = 500 null models", capsys.readouterr().out)


def test_pictures_of_the_readme_exist_and_are_small(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    names = re.findall(r'src(?:set)?="([^"]+)"', text)
    assert len(names) == 4  # two pictures, light and dark
    assert all((root / name).stat().st_size < 300_000 for name in names)
