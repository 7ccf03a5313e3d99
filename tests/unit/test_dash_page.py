"""Text that a view takes from a file is shown as it is, and every rerun can be sent as a command."""

import shlex

import pytest

from dashboards.address import Address
from dashboards.page import Page, parameters, plain
from interp.run import Run, Store
from tests.security.test_report_injection import PAYLOADS


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_character_of_a_payload_keeps_its_meaning(payload):
    shown = plain(payload)
    assert shown.replace("\\", "").replace("\u2060", "") == " ".join(payload.split()).replace("\\", "")
    for mark in "<>[]()`*_#!|$&:":
        assert f"\\{mark}" in shown or mark not in payload
    assert "://" not in shown.replace("\\", "")
    assert "www." not in shown.replace("\\", "")


def test_words_stay_words_and_lines_become_one():
    assert plain("No iteration head,\n  really") == "No iteration head, really"
    assert plain(3) == "3"
    assert [plain(text).count("\u2060") for text in ("WWW.x.example", "HTTPS://x", "a@b.example", "wwwx")] == [
        1,
        1,
        1,
        0,
    ]


def page(tmp_path, **raw: str) -> Page:
    run = Run("tiny", tmp_path / "tiny")
    return Page("emergence", "Emergence", Store(tmp_path), run, Address(raw, "tiny"))


def test_commands_name_run_and_store_where_they_belong(tmp_path):
    made = page(tmp_path)
    store = shlex.quote(str(tmp_path))
    assert made.command("detect", "--checkpoints", "all") == f"interp detect tiny --checkpoints all --store {store}"
    assert made.command("report", "make") == f"interp report make tiny --store {store}"
    assert made.command("runs", "ls", run=False) == f"interp runs ls --store {store}"
    assert made.command("train", "a; rm -rf /", run=False) == f"interp train 'a; rm -rf /' --store {store}"
    assert "store.run('tiny')" in made.python_start()


def test_an_endless_query_is_cut():
    cut = parameters({f"name{n}": "x" * 1000 for n in range(1000)})
    assert len(cut) == 40
    assert {len(value) for value in cut.values()} == {200}
