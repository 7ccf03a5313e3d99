"""The command `interp probe`, with `interp patterns` mounted beside it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from probes.cli_patterns import patterns

if TYPE_CHECKING:
    from probes.outputs import EmbeddingSummary, LensSummary, ProbeOutput


def probe(
    run: Annotated[str, typer.Argument(help="Run to probe, as listed by `interp runs ls`.")],
    what: Annotated[
        str, typer.Option(help="lens (logit lens by layer and position), embedding (2-D trajectory), or both.")
    ] = "lens,embedding",
    checkpoints: Annotated[
        str, typer.Option("--checkpoints", "--checkpoint", help="all, last, or one step; the embedding takes all.")
    ] = "all",
    length: Annotated[
        int | None, typer.Option(min=1, help="Inputs of the lens sequences; 8, or the longest, if not given.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=2, help="Held-out sequences of the lens.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sequences and the intervals.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute again, even what is stored.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    store: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look into the checkpoints of a run: what each layer would answer, and where the embeddings move."""
    from interp.given_run import dash_line, given_run

    kinds = wanted(what)
    opened = given_run(store, run)
    import torch

    from interp.console import print_json
    from interp.progress import counter
    from probes.run_probes import LensProbes, embedding_run, lens_run, steps_of
    from probes.summary import output_of

    torch.set_num_threads(threads)
    asked = LensProbes(length, n, seed)
    with counter() as tell:
        steps = steps_of(opened, checkpoints)
        keys = lens_run(opened, steps, asked, tell, fresh) if "lens" in kinds else []
        path = embedding_run(opened, steps_of(opened, "all"), tell, fresh) if "embedding" in kinds else None
    output = output_of(opened, steps, keys, path)
    if as_json:
        print_json(output)
    else:
        show(output, dash_line(opened, store))


COMMANDS = {"probe": probe, "patterns": patterns}


def wanted(what: str) -> list[str]:
    """The probes of a comma list.

    Raises:
        UnknownName: for a word that is none.
    """
    from interp.errors import UnknownName

    known = ("lens", "embedding")
    words = [word.strip() for word in what.split(",")]
    for word in words:
        if word not in known:
            raise UnknownName("word of --what", word, known)
    return words


def show(output: "ProbeOutput", see: str) -> None:
    """Tables, and the command that shows what was stored."""
    from interp.console import say

    if output.lens is not None:
        _show_lens(output.lens)
    if output.embedding is not None:
        _show_embedding(output.embedding)
    say(f"stored in the run; see it: {see}")


def _show_lens(lens: "LensSummary") -> None:
    from rich.table import Table

    from interp.console import out, say
    from probes.percent import percents

    title = f"Probability of the right state by depth in %, n={lens.n} held-out sequences of length {lens.length}"
    table = Table("step", *lens.depths, "first from", title=title)
    for point in lens.points:
        rows = zip(point.probability, point.low, point.high, strict=True)
        table.add_row(f"{point.step:,}", *(percents(*row) for row in rows), point.answered_from or "-")
    out().print(table)
    say("in brackets: 95 % intervals over sequences, as wide as if all states of a sequence varied together")
    say("first from: the depth from which on the right state is the most probable for 90 % of the states")


def _show_embedding(embedding: "EmbeddingSummary") -> None:
    from interp.console import say

    for one in embedding.explained:
        last, first = (" + ".join(f"{share:.1%}" for share in shares) for shares in (one.last, one.first))
        say(
            f"{one.what}: the plane shows {last} of the variance of {one.n} {one.what}, {first} at the first checkpoint"
        )
