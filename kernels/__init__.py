"""Batched-patching kernels: a torch reference beside each Triton kernel; this file imports nothing."""

# transformers probes for a package called `kernels` and may execute this file: no import, no version here.


def __getattr__(name: str) -> object:
    """Say whose package this is to code that looks for another distribution called kernels.

    Raises:
        AttributeError: for private and dunder names and for our own sub-modules, so that `hasattr` and
            `from kernels import dispatch` work.
        ImportError: for every other name.
    """
    import pkgutil

    if name.startswith("_") or name in {module.name for module in pkgutil.iter_modules(__path__)}:
        raise AttributeError(f"module 'kernels' has no attribute {name!r}")
    raise ImportError(
        f"cannot import {name!r}: this is the interp platform's own `kernels` package, but another distribution "
        "named kernels seems to be expected; run `interp doctor`, or uninstall the other one: pip uninstall kernels",
        name="kernels",
    )
