"""Where a result came from: code version, package versions and machine, as plain JSON."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformer-lens", "numpy", "safetensors", "triton", "pydantic")


def package_version(name: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def code_version() -> str:
    """Package version, with commit and a dirty mark when the package runs from a git checkout."""
    root = Path(__file__).resolve().parent.parent
    release = package_version("interp-platform") or "unreleased"
    if not (root / ".git").exists():
        return release
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    dirty = "+dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else ""
    return f"{release}+g{commit}{dirty}" if commit else release


def _git(root: Path, *arguments: str) -> str:
    """Output of a git command in `root`; empty where git is absent or refuses."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def environment(device: str, threads: int) -> dict[str, Any]:
    """What a reader needs to judge or repeat a number: versions, machine, device, threads."""
    import torch

    on_gpu = torch.device(device).type == "cuda"
    return {
        "format": 1,
        "code_version": code_version(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: package_version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(torch.device(device)) if on_gpu else device,
        "threads": threads,
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "tf32": bool(torch.backends.cuda.matmul.allow_tf32),
    }
