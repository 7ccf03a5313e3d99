"""A step that a view cannot show is replaced by one it can, and the view says so in one line."""

# ruff: noqa: F811 - fixtures that are imported by name

import pytest

from dashboards.address import Address
from interp.cli import main
from interp.run import Store
from tests.dash.analysed import LAST, analysed, solved_store  # noqa: F401

TAKES_STEP = ("attention", "emergence", "patching", "circuit", "lens", "embedding", "compare")


@pytest.fixture
def full_store(solved_store: Store) -> Store:
    """The run `solved` with attention patterns too; its checkpoints are 0 and LAST."""
    assert main(["patterns", "solved", "--store", str(solved_store.root)]) == 0
    return solved_store


def lines(app) -> list[str]:
    """What the view says about steps in the address."""
    return [one.value for one in app.caption if "; showing" in one.value]


def test_every_view_that_takes_a_step_says_which_one_it_shows_instead(view, full_store):
    for name in TAKES_STEP:
        app = view(full_store, name, run="solved", step=77)
        assert not app.exception
        assert lines(app) == ["Step 77 has no checkpoint; showing 0\\."], name
        assert lines(view(full_store, name, run="solved", step="abc<b>")) == [
            f"The step in the address is no number; showing {LAST:,}\\."
        ], name


def test_nothing_is_said_of_a_step_that_is_there_or_was_not_asked_for(view, full_store):
    for name in TAKES_STEP:
        assert lines(view(full_store, name, run="solved", step=LAST)) == [], name
        assert lines(view(full_store, name, run="solved")) == [], name


def test_the_second_step_of_a_comparison_is_told_too_and_the_nearest_one_is_shown(view, normal_store):
    app = view(normal_store, "compare", run="tiny", other="other", step=16, other_step=9)
    assert lines(app) == ["Step 9 has no checkpoint in other; showing 8\\."]
    assert [one.value for one in app.select_slider] == [16, 8]


def test_a_checkpoint_without_a_stored_result_is_told_apart_from_a_step_without_checkpoint():
    address = Address({"step": "28"}, "tiny", steps=(0, 28, 60))
    assert address.step((0, 60), "stored lens") == 0
    assert address.notes == {"step": "Step 28 has no stored lens; showing 0."}
    address.update({"step": "33"})
    assert address.notes == {}
    assert address.step((0, 60), "stored lens") == 60
    assert address.notes == {"step": "Step 33 has no checkpoint; showing 60."}
    assert address.step((), "stored lens") is None
    assert address.notes == {}
