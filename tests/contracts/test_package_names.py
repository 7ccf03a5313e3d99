"""Our folder names, `kernels` above all, do not collide with other people's packages, and theirs not with ours."""

import shutil
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from interp.doctor import OUR_PACKAGES, check_hidden, check_names

# `import_utils` first, so that the metadata it will see can be set; then what every model import does.
PROBE = """
import importlib.metadata, sys
import transformers.utils.import_utils as probe
{names}
print("available", probe.is_kernels_available(), "imported", "kernels" in sys.modules)
{then}
"""
NO_METADATA = "probe._candidate_distribution_names = lambda name: []"
IMPORT_MODELS = "import transformers.modeling_utils; print('models imported')"


@pytest.fixture
def shadow(root, tmp_path):
    """A folder, first on the path, with our `kernels` package and whatever is added to it."""

    def make(extra: str = "", distribution: str = "", version: str = "") -> Path:
        folder = tmp_path / "shadow"
        (folder / "kernels").mkdir(parents=True)
        shutil.copy(root / "kernels" / "__init__.py", folder / "kernels" / "__init__.py")
        with (folder / "kernels" / "__init__.py").open("a") as file:
            file.write(f"\n{extra}\n")
        if distribution:
            info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
            (info / "top_level.txt").write_text("kernels\n")
        return folder

    return make


def probe(names: str = "", then: str = "") -> str:
    """Code of a fresh interpreter that asks transformers about `kernels`."""
    return PROBE.format(names=names, then=then)


def test_source_tree_without_metadata_is_executed_and_found_unavailable(python, shadow):
    done = python(probe(NO_METADATA), first=shadow())
    assert done.stdout.split() == ["available", "False", "imported", "True"], done.stderr


def test_installed_project_is_recognised_by_metadata_and_not_even_imported(python):
    done = python(probe())
    assert done.stdout.split() == ["available", "False", "imported", "False"], done.stderr


def test_another_distribution_called_kernels_gets_a_clear_message(python, shadow):
    folder = shadow(distribution="kernels", version="0.18.3")
    done = python(probe(then="from kernels import CUDAProperties"), first=folder)
    assert done.stdout.split()[:2] == ["available", "True"]
    assert done.returncode == 1
    assert "this is the interp platform's own `kernels` package" in done.stderr
    assert "pip uninstall kernels" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "works"),
    [
        ({}, True),  # 1 source tree, plain file
        ({"extra": "raise RuntimeError('at import')"}, False),  # 2
        ({"extra": "__version__ = '0.18.4'"}, False),  # 3
        ({"distribution": "interp-shadow", "version": "0.18.5"}, False),  # 4
        ({"distribution": "interp-shadow", "version": "2026.1"}, True),  # 5
        ({"distribution": "kernels", "version": "0.18.3"}, False),  # 6
        (None, True),  # 7 as installed
        ({"extra": "import torch, triton"}, True),  # 8 works, but costs seconds: see test_startup
    ],
    ids=["source", "raises", "version", "in-window", "calver", "hf-kernels", "installed", "heavy"],
)
def test_transformers_models_import_beside_our_kernels(python, shadow, case, works):
    if case is None:
        done = python(probe(then=IMPORT_MODELS))
    else:
        names = {"interp-shadow": "probe._candidate_distribution_names = lambda name: ['interp-shadow']", "kernels": ""}
        done = python(probe(names.get(case.get("distribution"), NO_METADATA), IMPORT_MODELS), first=shadow(**case))
    assert ("models imported" in done.stdout) is works, done.stderr


def test_version_is_a_calendar_version_outside_every_semantic_window(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert int(project["version"].split(".")[0]) >= 2026


def test_build_lists_the_packages_and_writes_top_level_metadata(root):
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    assert settings["build-system"]["build-backend"] == "setuptools.build_meta"
    assert sorted(settings["tool"]["setuptools"]["packages"]["find"]["include"]) == sorted(
        f"{p}*" for p in OUR_PACKAGES
    )
    assert "--import-mode=importlib" in settings["tool"]["pytest"]["ini_options"]["addopts"]


def test_no_other_installed_distribution_claims_our_names():
    owners = packages_distributions()
    assert {name: set(owners.get(name, [])) - {"interp-platform"} for name in OUR_PACKAGES} == {
        name: set() for name in OUR_PACKAGES
    }
    assert all("interp-platform" in owners[name] for name in OUR_PACKAGES)


def test_doctor_names_the_rival_distribution_and_the_fix():
    check = check_names({"circuits": ["interp-platform", "circuits"]})
    assert check.status == "problem"
    assert check.detail == "circuits is also installed by circuits"
    assert check.fix == "pip uninstall circuits"


def test_doctor_names_a_folder_that_a_script_beside_it_would_import(root, tmp_path):
    assert check_hidden(tmp_path).status == "ok"
    (tmp_path / "interp").mkdir()
    check = check_hidden(tmp_path)
    assert (check.status, str(tmp_path / "interp") in check.detail) == ("note", True)
    assert "rename the folder" in check.fix
    assert check_hidden(root).status == "ok"  # our own folders are the packages


def test_no_file_in_dashboards_or_tests_is_called_like_a_package(root):
    inside = {path.stem for path in (root / "dashboards").iterdir()} | {
        path.name for path in (root / "tests").iterdir()
    }
    assert not inside & set(OUR_PACKAGES)


def test_kernels_answers_hasattr_and_finds_its_own_modules():
    import kernels

    assert not hasattr(kernels, "__version__")
    assert not hasattr(kernels, "_repr_html_")
    with pytest.raises(ImportError, match="interp platform's own"):
        kernels.get_kernel  # noqa: B018


def test_kernels_says_attribute_error_for_its_own_modules(python, shadow):
    folder = shadow()
    (folder / "kernels" / "dispatch.py").write_text('"""A module."""\n')
    done = python("import kernels; print(hasattr(kernels, 'dispatch')); from kernels import dispatch", first=folder)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
