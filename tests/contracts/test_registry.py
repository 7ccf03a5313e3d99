"""The folder is the registry: listing imports nothing, unlisted names are refused, plugins are welcome."""

import sys

import pytest

from interp import registry
from interp.errors import InterpError, UnknownName
from interp.registry import load, load_group, names, origin, summary


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Installs a distribution `extra` that offers entry points, for this test only."""

    def install(group: str, line: str, code: str) -> None:
        info = tmp_path / "extra-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{line}\n")
        (tmp_path / "extra_module.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "extra_module", raising=False)

    return install


def test_the_tasks_of_the_issue_are_listed_and_private_files_are_not(root):
    listed = names("task")
    assert {"binary_copy", "parity", "polynomial"} <= set(listed)
    assert listed == sorted(listed)
    assert not [name for name in listed if name == "base" or name.startswith("_")]
    assert origin("task", "parity") == str(root / "interp" / "tasks" / "parity.py")


def test_listing_imports_neither_the_entries_nor_torch(python):
    code = (
        "import sys; from interp.registry import names, summary;"
        "[summary(kind, name) for kind in ('task', 'detector') for name in names(kind)];"
        "print([m for m in sys.modules if m.startswith(('torch', 'interp.tasks', 'circuits'))])"
    )
    assert python(code).stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["base", "_rule", "../errors", "parity.TASK", "", "os", "interp.tasks.parity"])
def test_unlisted_names_are_refused_without_importing_them(name):
    with pytest.raises(UnknownName, match="unknown task"):
        load("task", name)


def test_unknown_names_come_with_the_nearest_known_one():
    with pytest.raises(UnknownName, match=r"unknown task 'pariti'; did you mean 'parity'\?"):
        load("task", "pariti")
    with pytest.raises(UnknownName, match=r"unknown kind of entry 'tasks'; did you mean 'task'\?"):
        names("tasks")


def test_installed_packages_add_tasks_and_detectors_by_entry_point(plugin):
    plugin("interp.detectors", "mine = extra_module:DETECTOR", "DETECTOR = 'a detector'\n")
    assert "mine" in names("detector")
    assert load("detector", "mine") == "a detector"
    assert origin("detector", "mine") == "extra_module:DETECTOR"
    assert summary("detector", "mine") == "entry point extra_module:DETECTOR"


def test_a_plugin_cannot_replace_a_built_in_entry(plugin, root):
    plugin("interp.tasks", "parity = extra_module:TASK", "TASK = 'an impostor'\n")
    assert names("task").count("parity") == 1
    assert load("task", "parity") != "an impostor"


@pytest.mark.parametrize(
    ("line", "code"), [("mine = missing_module:TASK", ""), ("mine = extra_module:NOTHING", "TASK = 1\n")]
)
def test_a_broken_plugin_is_named_with_its_package_and_only_when_asked_for(plugin, line, code):
    plugin("interp.tasks", line, code)
    assert "mine" in names("task")
    with pytest.raises(InterpError, match=r"entry point mine = .* cannot be loaded.*uninstall extra"):
        load("task", "mine")
    with pytest.raises(InterpError, match="entry point mine"):
        load_group("interp.tasks")


def test_a_folder_called_like_the_package_does_not_hide_the_tasks_from_a_script_beside_it(python, tmp_path):
    (tmp_path / "interp" / "docs").mkdir(parents=True)  # a clone, as far as Python is concerned
    code = (
        "import interp; from interp.registry import hidden_by, load, names;"
        "print(interp.__file__, len(hidden_by('interp')), load('task', 'parity') is not None, *names('task'))"
    )
    done = python(code, first=tmp_path)
    assert done.stdout.split() == ["None", "1", "True", "binary_copy", "parity", "polynomial"], done.stderr


def test_where_nothing_is_known_the_folder_that_hides_the_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "hidden_by", lambda package: ["/somewhere/interp"])
    monkeypatch.setattr(registry, "HOME", tmp_path)
    with pytest.raises(InterpError, match="'interp' is hidden by the folder /somewhere/interp; run from elsewhere"):
        load("task", "parity")
