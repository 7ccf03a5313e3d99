"""What the cost of a chunk depends on, read off the recorded runs."""

from collections.abc import Sequence

from circuits.engine.cost import SweepShape
from circuits.engine.runs import Runs


def shape_of(runs: Runs, read: Sequence[Sequence[bool]], start: int, kept_states: bool) -> SweepShape:
    """The shape of a chunk whose span begins at `start`.

    Args:
        read: whether the metric reads each position, of every prompt of the chunk.
    """
    stop = 1 + max(place for row in read for place, is_read in enumerate(row) if is_read)
    counts = [sum(row[start:stop]) for row in read]
    out_rows, is_linear = max(1, *counts), hasattr(runs.metric, "directions")
    return SweepShape(
        prompts=len(read),
        start=start,
        stop=stop,
        out_rows=out_rows,
        whole=min(counts) == stop - start,
        kept_states=kept_states,
        width=1 if is_linear else runs.decoder.W_U.shape[1],
        scored=len(read) * out_rows if is_linear else sum(counts),
    )
