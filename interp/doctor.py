"""Examines the installation and the machine: each check says what it found and, where needed, what to do."""

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, entry_points, packages_distributions, requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from interp.registry import hidden_by
from interp.schemas import Check, DoctorOutput

DISTRIBUTION = "interp-platform"
OUR_PACKAGES = ("interp", "probes", "circuits", "kernels", "dashboards")
OLDEST_PYTHON = (3, 11)
ENOUGH_DISK = 1 << 30
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def examine(store: Path) -> DoctorOutput:
    """Run every check; none changes anything, except for a probe file in the store that is deleted again."""
    checks: list[Callable[[], Check]] = [
        check_python,
        check_requirements,
        check_names,
        check_hidden,
        check_transformers,
        check_torch,
        check_threads,
        check_triton,
        lambda: check_store(store),
        check_entry_points,
        check_browser,
    ]
    done = [check() for check in checks]
    names = [Requirement(text).name for text in runtime_requirements()]
    return DoctorOutput(
        ok=all(check.status != "problem" for check in done),
        checks=done,
        versions={name: installed(name) for name in (DISTRIBUTION, *names)},
    )


def installed(name: str) -> str | None:
    """Installed version of a distribution; None where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def runtime_requirements() -> list[str]:
    """What the project needs on this platform, without its optional extras."""
    try:
        declared = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []
    return [text for text in declared if _applies(Requirement(text))]


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def check_python() -> Check:
    """Python is new enough."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        return Check(
            name="python", status="problem", detail=found, fix="install Python 3.11 or newer, then: make setup"
        )
    return Check(name="python", status="ok", detail=f"{found} ({sys.executable})")


def check_requirements() -> Check:
    """Every required distribution is installed in an accepted version."""
    if installed(DISTRIBUTION) is None:
        return Check(name="requirements", status="problem", detail="the project is not installed", fix="make setup")
    wrong = []
    for text in runtime_requirements():
        requirement = Requirement(text)
        found = installed(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name}{requirement.specifier} (found {found or 'none'})")
    if wrong:
        return Check(
            name="requirements", status="problem", detail="; ".join(wrong), fix="make setup, or: pip install -e ."
        )
    return Check(name="requirements", status="ok", detail=f"{len(runtime_requirements())} satisfied")


def check_names(claims: dict[str, list[str]] | None = None) -> Check:
    """Our five package names belong to us alone, and each one is found in our folder.

    Args:
        claims: package name -> distributions that install it; None reads the installed ones.
    """
    claims = packages_distributions() if claims is None else claims
    home = Path(__file__).resolve().parent.parent
    rivals = {name: sorted({owner for owner in claims.get(name, []) if owner != DISTRIBUTION}) for name in OUR_PACKAGES}
    found = {name: _folder_of(name) for name in OUR_PACKAGES if not hidden_by(name)}
    taken = [f"{name} is also installed by {', '.join(owners)}" for name, owners in rivals.items() if owners]
    taken += [f"{name} is found at {where}" for name, where in found.items() if where != str(home / name)]
    if taken:
        others = sorted({owner for owners in rivals.values() for owner in owners})
        fix = (
            f"pip uninstall {' '.join(others)}" if others else "pip install -e . in our folder, and run from elsewhere"
        )
        return Check(name="package names", status="problem", detail="; ".join(taken), fix=fix)
    return Check(name="package names", status="ok", detail=f"{', '.join(OUR_PACKAGES)} are ours alone")


def check_hidden(here: Path | None = None) -> Check:
    """No folder, such as a clone called `interp`, stands where a script would import it instead of a package of ours.

    Args:
        here: where scripts are; None looks at the working folder and at the one around ours.
    """
    home = Path(__file__).resolve().parent.parent
    places = dict.fromkeys([Path.cwd(), home.parent] if here is None else [here])
    folders = [place / name for place in places for name in OUR_PACKAGES if place.resolve() != home]
    hiding = [str(folder) for folder in folders if folder.is_dir() and not (folder / "__init__.py").exists()]
    hiding += [folder for name in OUR_PACKAGES for folder in hidden_by(name) if folder not in hiding]
    if not hiding:
        return Check(name="folder names", status="ok", detail="no folder here hides a package of ours")
    names = ", ".join(hiding)
    return Check(
        name="folder names",
        status="note",
        detail=f"a script beside {names} imports that folder, and not our package of the same name",
        fix="keep scripts elsewhere, or rename the folder",
    )


def _folder_of(name: str) -> str:
    spec = find_spec(name)
    return str(Path(spec.origin).resolve().parent) if spec and spec.origin else "no folder"


def check_transformers() -> Check:
    """The transformers library imports, and does not take our `kernels` for the one on the Hugging Face hub."""
    try:
        from transformers.utils.import_utils import is_kernels_available
    except ImportError as error:
        return Check(name="transformers", status="problem", detail=str(error), fix="make setup")
    if is_kernels_available():
        detail = "takes our package `kernels` for Hugging Face's"
        return Check(name="transformers", status="problem", detail=detail, fix="pip uninstall kernels")
    return Check(name="transformers", status="ok", detail="leaves our package `kernels` alone")


def check_torch() -> Check:
    """torch imports; says which devices it can use."""
    try:
        import torch
    except ImportError as error:
        return Check(name="torch", status="problem", detail=str(error), fix="make setup")
    devices = ["cpu", *(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))]
    return Check(name="torch", status="ok", detail=f"{torch.__version__}; devices: {', '.join(devices)}")


def check_threads() -> Check:
    """How many cores and threads a training can use; results depend on the number of threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ]
    detail = f"{cores} cores usable; a run uses train.threads (recorded in it)" + "".join(f"; {one}" for one in limits)
    return Check(name="threads", status="ok", detail=detail)


def check_triton() -> Check:
    """Triton is installed and a GPU is there to use it; otherwise the torch reference runs."""
    if find_spec("triton") is None:
        return Check(
            name="triton",
            status="note",
            detail="not installed: kernels run as plain torch",
            fix="" if sys.platform != "linux" else "pip install 'triton>=3.6,<3.10'",
        )
    try:
        import torch
    except ImportError:
        return Check(name="triton", status="note", detail="installed, but torch is not", fix="make setup")
    if not torch.cuda.is_available():
        return Check(
            name="triton", status="ok", detail=f"{installed('triton')}; no GPU here: kernels run as plain torch"
        )
    return Check(name="triton", status="ok", detail=f"{installed('triton')}; kernels run on the GPU")


def check_store(store: Path) -> Check:
    """The run store can be written and locked, and its disk has room."""
    place = store.resolve()
    while not place.exists():
        place = place.parent
    name = f"store {store}"
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            fcntl.flock(probe.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            probe.write(b"0")
    except OSError as error:
        fix = "give --store another folder, or change its owner or permissions"
        return Check(name=name, status="problem", detail=f"{place}: {error.strerror or error}", fix=fix)
    free = shutil.disk_usage(place).free
    if free < ENOUGH_DISK:
        return Check(
            name=name, status="note", detail=f"{free / 1e9:.1f} GB free", fix="free some space: interp runs rm"
        )
    return Check(name=name, status="ok", detail=f"writable, can be locked, {free / 1e9:.0f} GB free")


def check_entry_points() -> Check:
    """Every command, task, detector and tracker that an installed package offers can be found."""
    groups = ("interp.commands", "interp.trackers", "interp.tasks", "interp.detectors")
    points = [point for group in groups for point in entry_points(group=group)]
    broken = [f"{point.name} = {point.value} ({point.group})" for point in points if not _module_exists(point.module)]
    if broken:
        fix = "reinstall or uninstall the package that offers it; for ours: make setup"
        return Check(name="entry points", status="problem", detail="missing: " + "; ".join(broken), fix=fix)
    return Check(name="entry points", status="ok", detail=f"{len(points)} found")


def _module_exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False


def check_browser(names: Iterable[str] = BROWSERS) -> Check:
    """A Chromium is on the path; only the browser tests need it."""
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        detail = "no Chromium on the path: browser tests are skipped"
        return Check(name="browser", status="note", detail=detail, fix="make setup-browser")
    return Check(name="browser", status="ok", detail=found)
