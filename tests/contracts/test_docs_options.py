"""The options page lists every command with each of its arguments and options."""

import runpy

import pytest
import typer

from interp.cli import build_app


@pytest.fixture(scope="module")
def command():
    """The whole command with what is mounted on it."""
    return typer.main.get_command(build_app())


@pytest.fixture(scope="module")
def tools(root) -> dict:
    """Functions of the file that writes the page; it needs no Sphinx."""
    return runpy.run_path(str(root / "docs" / "_ext" / "cli_text.py"))


def test_every_command_has_a_section_with_each_option(command, tools):
    text = tools["options_text"](command)
    leaves = dict(tools["leaves"](command))
    assert {"interp train", "interp runs compare", "interp report verify"} <= set(leaves)
    for name, leaf in leaves.items():
        body = text.split(f"## `{name}`\n", 1)[1].split("\n## ", 1)[0]
        named = [word for p in leaf.params if p.param_type_name == "option" for word in p.opts]
        assert not [word for word in named if word not in ("-h", "--help") and f"`{word}`" not in body], name


def test_a_row_shows_spellings_value_default_and_meaning(command, tools):
    text = tools["options_text"](command.commands["detect"])
    for start in ("| `--null` NULL | `500` | ", "| `--seed` SEED | `0` | ", "| `--fresh` |  | ", "| `RUN` |  | "):
        (row,) = (line for line in text.splitlines() if line.startswith(start))
        assert row.removeprefix(start).removesuffix(" |").endswith("."), row
