"""The page on prompt pairs: its file is read, its code runs, and it has a row for every key."""

import json
import re
import runpy
from pathlib import Path

from interp.pairs.jsonl import KEYS
from tests.unit.small_tokenizers import english, wrapped

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "prompt-pairs.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_has_a_row_for_every_key_of_the_format():
    rows = " ".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `"))
    assert not [key for key in KEYS if f"`{key}`" not in rows]


def test_code_of_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "path" / "to" / "model_folder"
    tokenizer = english(extra=[json.loads(line)["clean"] for line in blocks("json")[0].splitlines()])
    wrapped(tokenizer).save_pretrained(folder)
    (tmp_path / "pairs.jsonl").write_text(blocks("json")[0])
    known = {word: tokenizer.token_to_id(f"Ġ{word}") for word in ("Tom", "Mary")}
    (tmp_path / "ioi.csv").write_text(
        "clean,corrupted,correct_idx,incorrect_idx\n"
        f"When Mary gave it to,When Tom gave it to,{known['Tom']},{known['Mary']}\n"
    )
    code = "\n".join(blocks("python")).replace("50257", "1000").replace(", 100, stream", ", 6, stream")
    (tmp_path / "page.py").write_text(code)
    runpy.run_path("page.py")
    assert "'start..IO', 'IO', 'IO..S1', 'S1', 'S1..S2', 'S2', 'S2..END', 'END'" in capsys.readouterr().out
    header = json.loads((tmp_path / "mine.jsonl").read_text().splitlines()[0])
    assert header["pairs"] == 1 and header["source"]["settings"]["family"] == "mixed"
