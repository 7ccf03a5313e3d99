"""Every command that README, docs and messages name exists, with the options they give it."""

import ast
import re
import shlex

import pytest
import typer

from interp.cli import build_app

FENCE = re.compile(r"^\s*```(?:sh|bash|console|shell)\n(.*?)^\s*```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:interp|make) [^`\n]*)`")
PATTERN = re.compile(r"[\[\]|{}<>…]|\.\.\.")  # a synopsis such as `interp runs [ls|show]`, not a command line
SETTING = re.compile(r"[A-Za-z_]+=\S*")


def pages(root) -> dict[str, str]:
    """Text of every page, without the built documentation."""
    paths = [root / "README.md", *(root / "docs").rglob("*.md")]
    return {
        str(path.relative_to(root)): path.read_text(encoding="utf-8")
        for path in paths
        if path.exists() and "_build" not in path.parts
    }


def command_lines(text: str) -> list[list[str]]:
    """Words of each `interp ...` and `make ...` in fenced blocks and inline code, settings before them taken off."""
    lines = [line for block in FENCE.findall(text) for line in re.split(r"&&|;|\n", block)]
    lines += [line for line in INLINE.findall(text) if not PATTERN.search(line)]
    found = []
    for line in lines:
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        while words and SETTING.fullmatch(words[0]):
            words = words[1:]
        if words and words[0].rsplit("/", 1)[-1] in {"interp", "make"}:
            found.append([words[0].rsplit("/", 1)[-1], *words[1:]])
    return found


@pytest.fixture(scope="module")
def command():
    """The whole command with what is mounted on it."""
    return typer.main.get_command(build_app())


def fault(command, words: list[str]) -> str | None:
    """What is wrong with the words after `interp`; None if such a command line exists."""
    rest, here = list(words), command
    while getattr(here, "commands", None) and rest and not rest[0].startswith("-"):
        if rest[0] not in here.commands:
            return f"no command {rest[0]!r}"
        here = here.commands[rest.pop(0)]
    known = {"-h", "--help", "--traceback", *(o for p in here.params for o in (*p.opts, *p.secondary_opts))}
    unknown = [word for word in rest if re.match(r"--?[a-zA-Z]", word) and word.split("=")[0] not in known]
    return f"no option {unknown[0]}" if unknown else None


def test_every_documented_command_line_exists(root, command):
    targets = set(re.findall(r"^([a-z][a-z-]*):", (root / "Makefile").read_text(), re.MULTILINE))
    wrong = []
    for page, text in pages(root).items():
        for program, *words in command_lines(text):
            if program == "make":
                named = [word for word in words if "=" not in word and not word.startswith("-")]
                wrong += [f"{page}: make {word}" for word in named if word not in targets]
            elif problem := fault(command, words):
                wrong.append(f"{page}: interp {shlex.join(words)}: {problem}")
    assert not wrong, "\n".join(wrong)


def test_every_command_is_documented(root, command):
    text = "\n".join(pages(root).values())
    leaves = [
        f"interp {name}" + (f" {inner}" if inner else "")
        for name, one in command.commands.items()
        for inner in (getattr(one, "commands", None) or [""])
    ]
    assert not [leaf for leaf in leaves if leaf not in text]


def test_commands_named_in_messages_exist(sources, command):
    wrong = []
    for path, _, tree in sources:
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        for node in texts:
            for line in INLINE.findall(node.value):
                words = line.split()
                if words[0] == "interp" and not PATTERN.search(line) and (problem := fault(command, words[1:])):
                    wrong.append(f"{path}:{node.lineno} {line}: {problem}")
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("interp runs ls --json", None),
        ("interp train polynomial --set train.lr=1 -c x.toml", None),
        ("interp runs lss", "no command 'lss'"),
        ("interp runs ls --jsn", "no option --jsn"),
    ],
)
def test_this_check_sees_a_wrong_command(command, line, problem):
    ((_, *words),) = command_lines(f"```sh\nA=1 {line}  # comment\n```\n")
    assert fault(command, words) == problem


def test_links_between_pages_lead_somewhere(root):
    wrong = [
        f"{page}: {target}"
        for page, text in pages(root).items()
        for target in re.findall(r"\]\(([^)#\s]+)\)", text)
        if "://" not in target and not (root / page).parent.joinpath(target).exists()
    ]
    assert not wrong, wrong
