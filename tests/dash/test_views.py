"""Every view on an empty, a normal, a hostile and a corrupted store: no exception, and it says what to do."""

import pytest

from interp.registry import names
from tests.dash.seen import text

VIEWS = names("view")


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_of_an_empty_store_teaches_the_first_command(view, empty_store, name):
    app = view(empty_store, name)
    assert not app.exception
    assert "interp " in text(app)
    assert not empty_store.root.exists()


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_of_a_trained_run_shows_without_exception(view, normal_store, name):
    app = view(normal_store, name, run="tiny", step=16)
    assert not app.exception
    assert app.title[0].value
