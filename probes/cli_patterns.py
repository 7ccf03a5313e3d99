"""The command `interp patterns`."""

from pathlib import Path
from typing import Annotated

import typer


def patterns(
    run: Annotated[str, typer.Argument(help="Run whose patterns are stored, as listed by `interp runs ls`.")],
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute again, even what is stored.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    store: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Store attention patterns of fixed held-out sequences at every checkpoint, for the dashboard to show."""
    from interp.given_run import dash_line, given_run

    opened = given_run(store, run)
    import torch

    from interp.console import print_json, say
    from interp.progress import counter
    from probes.patterns_compute import store_patterns
    from probes.patterns_store import PatternsOutput

    torch.set_num_threads(threads)
    with counter() as tell:
        done = store_patterns(opened, fresh=fresh, tell=tell)
    labels = [prompt.label for prompt in done.prompts]
    if as_json:
        print_json(PatternsOutput(run=opened.name, computed=done.computed, kept=done.kept, prompts=labels))
        return
    computed, kept = len(done.computed), len(done.kept)
    say(f"attention patterns of {len(labels)} sequences: {computed} checkpoints computed, {kept} were stored")
    say(f"see them: {dash_line(opened, store)}")
