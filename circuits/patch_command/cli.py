"""The command `interp patch`."""

from pathlib import Path
from typing import Annotated

import typer

By = Annotated[
    str,
    typer.Option(
        help="What one effect belongs to: head,position; layer,position; neuron,position; edge,position; or, at all "
        "positions at once, head, layer or edge."
    ),
]
Ablation = Annotated[
    str,
    typer.Option(
        help="none patches between the two runs of a pair; zero, mean and resample (the value in another prompt) act "
        "on the clean run."
    ),
]
Site = Annotated[
    str | None,
    typer.Option(
        help="z, q, k or v of heads (z if not given); resid_pre, resid_mid, resid_post, attn_out or mlp_out of layers "
        "(resid_pre if not given); mlp_post of neurons."
    ),
]
Step = Annotated[
    str | None,
    typer.Option(
        help="Step t of the task, from 0, that writes s_{t+1}: a number or all. If not given, all that have pairs (a "
        "row of the heatmap each), or the middle one where that would be over a million effects."
    ),
]
Direction = Annotated[
    str | None,
    typer.Option(
        help="denoise puts clean values into the donor's run, noise the donor's values into the clean run. If not "
        "given, denoise; for clock pairs noise."
    ),
]
Metric = Annotated[str, typer.Option(help="logit-diff (clean answer - swapped answer), log-prob, kl or accuracy.")]
Precision = Annotated[
    str, typer.Option(help="fp32 or fp64; tf32 or bf16, whose error is then measured as with --verify.")
]
Verify = Annotated[
    int | None,
    typer.Option(min=0, help="Rerun this many random effects by plain forwards through hooks and say the error."),
]
Plan = Annotated[bool, typer.Option("--plan", help="Say what it would cost, and stop: nothing is patched or written.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Folder for the files; RUN/analysis if not given.")]


def patch(
    run: Annotated[str, typer.Argument(help="Run to patch, as listed by `interp runs ls`; it need not be solved.")],
    by: By = "head,position",
    ablation: Ablation = "none",
    site: Site = None,
    pairs: Annotated[str, typer.Option(help="Pair family: input, state or clock.")] = "input",
    length: Annotated[int | None, typer.Option(min=1, help="Number of inputs; the longest if not given.")] = None,
    step: Step = None,
    direction: Direction = None,
    metric: Metric = "logit-diff",
    n: Annotated[int, typer.Option("--n", min=2, help="Prompts (pairs) at each step of the task.")] = 32,
    precision: Precision = "fp32",
    verify: Verify = None,
    plan: Plan = False,
    checkpoint: Annotated[str, typer.Option(help="last, or a training step.")] = "last",
    seed: Annotated[int, typer.Option(min=0, help="Seed of pairs, resampling and intervals.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    output: Output = None,
    store: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Patch every head, layer, neuron or edge of a run, exactly; write the effects as table and heatmap."""
    from circuits.cli import open_run
    from circuits.patch_command.request import request

    options = {"site": site, "pairs": pairs, "length": length, "t": step, "ablation": ablation, "direction": direction}
    options |= {"metric": metric, "n": n, "precision": precision, "seed": seed, "verify": verify}
    asked = request(by=by, checkpoint=checkpoint, **options)
    opened = open_run(store, run)
    import torch

    from circuits.patch_command.cells import cells_of
    from circuits.patch_command.files import write_patches
    from circuits.patch_command.planning import plan_output, plan_run
    from circuits.patch_command.run import patch_run
    from circuits.patch_command.text import show_patches, show_plan
    from interp.console import print_json
    from interp.errors import Interrupted
    from interp.progress import counter
    from interp.run import ANALYSIS

    torch.set_num_threads(threads)
    if plan:
        planned = plan_run(opened, asked)
        if as_json:
            print_json(plan_output(planned))
        else:
            show_plan(planned)
        return
    with counter() as tell:
        try:
            found = patch_run(opened, asked, tell)
            cells = cells_of(found)
        except KeyboardInterrupt:
            raise Interrupted("stopped by the user; nothing was written") from None
        written = write_patches(found, cells, output or opened.path / ANALYSIS)
    if as_json:
        print_json(written)
    else:
        show_patches(found, cells, written.files)
