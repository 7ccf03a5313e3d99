"""R10: no run name or analysis key reaches a path outside its folder."""

from pathlib import Path

import pytest
import torch

from interp.config import RunConfig
from interp.errors import RunNameError, StoreError, UnknownName
from interp.names import check_name, is_name
from interp.run import Run, Store

GOOD = ["a", "0", "poly1", "poly-1_b.2", "a" * 64, "console", "com10", "con-1", "x.con"]
BAD = [
    "", ".", "..", "...", "a..b", "../a", "a/../../b", "/etc/passwd", "a/b", "a\\b", "..\\a", "C:", "c:a", "~", "~root",
    "a\0b", "a\n", "\na", "a b", " a", "a ", "a\t", "-rf", "_a", ".hidden", ".tmp-1", "A", "É", "\uff41", "a\u202eb",
    "a\u200b", 
    "%2e%2e", "a%2fb", "a?b", "a#b", "a*b", "$HOME", "`id`", "a;b", "a|b", "con", "nul", "com1", "lpt9.txt", "aux.",
    "prn.json", "a.", "a" * 65, "a" * 100_000, "\u0661", "a\ud800",
]  # fmt: skip
PIECES = [
    *'abz019._-/\\ ~%:*?"<>|\n\0\t',
    "..",
    "../",
    "%2e",
    "%2f",
    "con",
    "nul.",
    "é",
    "\u202e",
    "\uff0e",
    "A",
    "/etc",
]


def generated(count: int) -> list[str]:
    """Names made of up to eight pieces, more hostile than random characters would be."""
    generator = torch.Generator().manual_seed(3)
    picks = torch.randint(len(PIECES), (count, 8), generator=generator).tolist()
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    return ["".join(PIECES[i] for i in row[:n]) for row, n in zip(picks, lengths, strict=True)]


@pytest.mark.parametrize("name", GOOD)
def test_plain_names_are_accepted(name: str):
    assert check_name(name) == name


@pytest.mark.parametrize("name", BAD, ids=range(len(BAD)))
def test_hostile_names_are_refused_and_the_rule_is_said(store: Store, name: str):
    for ask in (store.run, store.remove, lambda name: store.create(name, RunConfig(task="parity"))):
        with pytest.raises(RunNameError, match=r"is not allowed.*use 1 to 64 of a-z 0-9") as caught:
            ask(name)
        assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)
        assert caught.value.exit_code == 2


def test_names_that_are_no_text_are_refused():
    for name in (None, 3, b"a", Path("a"), ["a"]):
        with pytest.raises(RunNameError):
            check_name(name)  # type: ignore[arg-type]


def test_no_generated_name_escapes_the_store(store: Store):
    names = generated(10_000)
    accepted = {name for name in names if is_name(name)}
    assert 50 < len(accepted) < 9_000, "the generator must reach both sides of the rule"
    for name in accepted:
        path = store.root / name
        assert path.resolve().parent == store.root
        assert path.name == name == name.lower()
        assert name.isascii() and name.isprintable() and not set(name) & set('/\\:*?"<>|~% ')
    for name in set(names) - accepted:
        with pytest.raises(RunNameError):
            store.run(name)
    assert not store.root.exists()


def test_generated_analysis_keys_stay_in_the_analysis_folder(run: Run):
    before = sorted(run.path.rglob("*"))
    for key in generated(300):
        try:
            run.analysis(key)
        except (RunNameError, UnknownName):
            continue
        pytest.fail(f"{key!r} was read")
    for key in [key for key in BAD if len(key) != 65]:
        with pytest.raises(RunNameError, match="analysis name"):
            run.write_analysis(key, {})
    assert sorted(run.path.rglob("*")) == before


def test_unknown_run_suggests_the_nearest(store: Store, run: Run):
    with pytest.raises(UnknownName, match="unknown run 'tinny'; did you mean 'tiny'"):
        store.run("tinny")


def test_folders_that_are_no_runs_are_not_listed(store: Store, run: Run):
    for name in ("empty", ".hidden", "UPPER", "a..b"):
        (store.root / name).mkdir()
    (store.root / "file").write_bytes(b"")
    assert store.names() == ["tiny"]
    with pytest.raises(StoreError, match=r"empty/config\.json: missing"):
        store.run("empty")
    with pytest.raises(StoreError, match="file: expected a folder"):
        store.run("file")
