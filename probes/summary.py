"""The stored lens and embedding analyses of a run in short, for the terminal and `--json`; loads no torch."""

from collections.abc import Sequence

import numpy as np

from interp.run import Run
from probes.outputs import EmbeddingSummary, Explained, LensPoint, LensSummary, ProbeOutput
from probes.stored import LENS_FIELDS, StoredLens, payload, stored_embedding


def output_of(run: Run, steps: Sequence[int], keys: Sequence[str], embedding: str | None) -> ProbeOutput:
    """What `interp probe` stored under these keys."""
    found = [
        StoredLens(step, key, payload(run, key, "lens", LENS_FIELDS)) for step, key in zip(steps, keys, strict=False)
    ]
    return ProbeOutput(
        run=run.name,
        lens=_lens(run, found) if found else None,
        embedding=_embedding(run, embedding) if embedding is not None else None,
    )


def lens_point(run: Run, stored: StoredLens) -> LensPoint:
    """Means over the positions that the task asks for.

    The ends of the intervals are averaged too: what is stored has no draws, and a mean over positions never varies more
    than its parts do together.
    """
    arrays, scored = stored.arrays(run), np.array(stored.about["scored"], dtype=bool)
    means = {name: arrays[name][:, scored].mean(1).tolist() for name in ("probability", "low", "high", "first")}
    return LensPoint(step=stored.step, key=stored.key, answered_from=stored.about.get("answered_from"), **means)


def _lens(run: Run, found: Sequence[StoredLens]) -> LensSummary:
    about = found[0].about
    return LensSummary(
        length=about["length"],
        n=about["n"],
        seed=about["seed"],
        depths=about["depths"],
        points=[lens_point(run, one) for one in found],
    )


def _embedding(run: Run, key: str) -> EmbeddingSummary:
    stored = stored_embedding(run, key)
    explained = [
        Explained(
            what=what,
            n=len(stored.labels(what)),
            last=stored.explained[what].tolist(),
            first=stored.shares[what][0].tolist(),
        )
        for what in stored.places
    ]
    return EmbeddingSummary(
        key=key, steps=list(stored.steps), fit=str(stored.about.get("fit", "")), explained=explained
    )
