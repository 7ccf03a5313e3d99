"""The commands `interp detect`, `interp report` and `interp demo`, with those of other files mounted beside them."""

import sys
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Annotated

import typer

from circuits.cli_circuit import circuit
from circuits.cli_export import export
from circuits.cli_heads import heads
from circuits.patch_command.cli import patch

if TYPE_CHECKING:
    from interp.run import Run

StoreOption = Annotated[Path, typer.Option(help="Folder that holds the runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

REPORT = typer.Typer(help="Write and verify circuit reports.", no_args_is_help=True)


def detect(
    run: Annotated[str, typer.Argument(help="Run to look at, as listed by `interp runs ls`.")],
    detector: Annotated[str, typer.Option(help="Detector; the file stem under circuits/detectors.")] = "iteration_head",
    checkpoints: Annotated[str, typer.Option("--checkpoints", "--checkpoint", help="last, all, or one step.")] = "last",
    null: Annotated[
        int, typer.Option(min=99, help="Untrained null models; 99 is the least that can reach p = .01.")
    ] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the probe pairs and the null.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute again, even what is stored.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    store: StoreOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Look for a circuit in a trained run and say how sure that is."""
    step, follow = _which(checkpoints)
    opened = open_run(store, run)
    import torch

    from circuits.cli_text import show_detection
    from circuits.detect import detect_run
    from circuits.detectors.iteration_head import Options
    from circuits.outputs import DetectOutput
    from interp.console import print_json
    from interp.progress import counter

    torch.set_num_threads(threads)
    options = Options(seed=seed, n_null=null)
    with counter() as tell:
        found = detect_run(
            opened, detector=detector, step=step, every_checkpoint=follow, options=options, tell=tell, fresh=fresh
        )
    if as_json:
        print_json(DetectOutput(run=opened.name, detection=found.detection, emergence=found.emergence))
    else:
        show_detection(found.detection, found.emergence)


@REPORT.command()
def make(
    run: Annotated[str, typer.Argument(help="Run to report on.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder; RUN/report if not given.")] = None,
    step: Annotated[
        int | None,
        typer.Option("--step", "--checkpoint", min=0, help="Checkpoint to report on; the newest if not given."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    store: StoreOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Write report.html, report.json and report.md for a run."""
    opened = open_run(store, run)
    import torch

    from circuits.outputs import ReportOutput
    from circuits.report.build import build_report
    from circuits.report.render import write_report
    from interp.console import print_json, say
    from interp.progress import counter

    torch.set_num_threads(threads)
    with counter() as tell:
        report = build_report(opened, step=step, tell=tell)
    files = {kind: str(path) for kind, path in write_report(report, output or opened.path / "report").items()}
    if as_json:
        claim, digest = report.claim, report.content_hash
        print_json(ReportOutput(run=opened.name, verdict=report.verdict, claim=claim, content_hash=digest, files=files))
    else:
        say(report.claim)
        for path in files.values():
            say(path)


@REPORT.command()
def verify(
    file: Annotated[Path, typer.Argument(help="report.json, report.html, or the folder that holds them.")],
    rerun: Annotated[bool, typer.Option("--rerun", help="Compute the numbers again from the run around it.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads for --rerun.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Check the hashes of a report and, with --rerun, its numbers; exit code 1 where they differ."""
    from circuits.cli_text import show_verification
    from circuits.outputs import VerifyOutput
    from circuits.report.verify import verify as check
    from interp.console import print_json
    from interp.progress import counter

    again = None
    if rerun:
        import torch

        from circuits.report.build import rebuild

        torch.set_num_threads(threads)
        path = file / "report.json" if file.is_dir() else file
        again = lambda report: rebuild(path, report, tell)  # noqa: E731
    with counter() as tell:
        result = check(file, again)
    if as_json:
        print_json(VerifyOutput(result=result))
    else:
        show_verification(result)
    if not result.ok:
        raise typer.Exit(1)


@REPORT.command("circuit")
def circuit_page(
    run: Annotated[str, typer.Argument(help="Run that `interp circuit` has looked at, or the folder of its -o.")],
    checkpoint: Annotated[str, typer.Option(help="last stored circuit, or a step.")] = "last",
    positions: Annotated[
        bool | None,
        typer.Option("--positions/--no-positions", help="Only with, or without, positions; else the newest."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder; RUN/report if not given.")] = None,
    store: StoreOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Write circuit.html, circuit.svg and circuit.json from circuits that are stored; nothing is computed."""
    from interp.errors import UsageError

    if checkpoint != "last" and not checkpoint.isdecimal():
        raise UsageError(f"--checkpoint {checkpoint!r}: expected last, or a step such as 5080")
    step = None if checkpoint == "last" else int(checkpoint)
    from circuits.outputs import CircuitReportOutput
    from circuits.report import circuit_stored as stored
    from interp.console import print_json, say

    of_folder = stored.holds_circuits(Path(run))
    reads = "this command reads runs trained here, or the folder that interp circuit -o wrote: give that"
    shelf = stored.shelf_of_folder(Path(run)) if of_folder else stored.shelf_of_run(open_run(store, run, reads))
    main = stored.stored_circuit(shelf, step, positions)
    files = {kind: str(path) for kind, path in stored.write_circuit_page(shelf, main, output).items()}
    verdict, headline = main.data["verdict"], main.data["headline"]
    if as_json:
        print_json(
            CircuitReportOutput(
                run=shelf.name, step=stored.step_of(main), verdict=verdict, headline=headline, files=files
            )
        )
    else:
        say(headline)
        for path in files.values():
            say(path)


def demo(
    store: StoreOption = Path("runs"),
    name: Annotated[str, typer.Option(help="Name of the run.")] = "demo",
    seed: Annotated[int, typer.Option(min=0, help="Seed; success is a property of the seed.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Train a model, find its iteration heads, show that it uses them and write the report: two minutes on one core."""
    from circuits.demo import run_demo
    from interp.console import note, print_json, say
    from interp.progress import counter, training_display

    with training_display(name) as progress, counter() as tell:
        result = run_demo(store, name, seed, progress=progress, tell=tell, say=note)
    if as_json:
        print_json(result)
        return
    say(result.claim)
    spent = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in result.cpu_seconds.items())
    say(f"lowest held-out sequence accuracy over lengths: {result.accuracy:.4f}; CPU time: {spent}")
    say(f"open {result.files['html']}")
    program = "interp" if which("interp") else Path(sys.executable).parent / "interp"
    say(f"check it: {program} report verify {result.files['json']} --rerun")
    say(f"explore it: {program} dash {name}" + ("" if str(store) == "runs" else f" --store {store}"))
    if result.verdict != "iteration head":
        say("This seed gave no iteration head here: success is a property of the seed.")
        say(f"next: interp demo --seed {seed + 1} --name {name}-{seed + 1}")
        raise typer.Exit(1)


COMMANDS = {
    "detect": detect,
    "circuit": circuit,
    "heads": heads,
    "patch": patch,
    "report": REPORT,
    "export": export,
    "demo": demo,
}


def _which(checkpoints: str) -> tuple[int | None, bool]:
    """(step, follow all) from the option's text."""
    from interp.errors import UsageError

    if checkpoints in ("last", "all"):
        return None, checkpoints == "all"
    if not checkpoints.isdecimal():
        raise UsageError(f"--checkpoints {checkpoints!r}: expected last, all, or a step such as 5080")
    return int(checkpoints), False


def open_run(store: Path, name: str, reads: str | None = None) -> "Run":
    """The run, before anything heavy is imported, so that a wrong name answers at once.

    Args:
        reads: what the command reads, where that is not runs alone.
    """
    from interp.given_run import TRAINED, given_run

    return given_run(store, name, reads or f"this command {TRAINED}")
