"""The commands `interp tasks ls` and `interp tasks show`."""

from typing import Annotated

import typer

from interp.console import json_text, out, print_json, say

APP = typer.Typer(help="List the tasks, or describe one.", no_args_is_help=True)


@APP.command("ls")
def ls(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """List every task: built-in files, then entry points."""
    from interp.registry import names, origin, summary
    from interp.schemas import TaskItem, TasksOutput

    items = [TaskItem(name=n, summary=summary("task", n), origin=origin("task", n)) for n in names("task")]
    if as_json:
        print_json(TasksOutput(tasks=items))
        return
    width = max((len(item.name) for item in items), default=0)
    for item in items:
        say(f"{item.name:<{width}}  {item.summary}")


@APP.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Task, as listed by `interp tasks ls`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Describe a task: layout, vocabulary, an example, parameters and the recommended run."""
    from interp.task_description import describe_task

    result = describe_task(name)
    if as_json:
        print_json(result)
        return
    say(f"{result.name}: {result.summary}")
    say(f"lengths      {result.lengths[0]} to {result.lengths[-1]}, {result.n_ctx} positions at most")
    say(f"vocabulary   {' '.join(result.vocabulary)}")
    say(f"example      {' '.join(result.example)}")
    for key in ("rule", "circuit"):
        if key in result.description:
            say(f"{key:<12} {result.description[key]}")
    say("parameters   (--set task_params.NAME=VALUE)")
    for parameter, schema in result.params.get("properties", {}).items():
        say(f"  {parameter} = {schema.get('default')}  {schema.get('description', '')}".rstrip())
    say("recommended run   (--set KEY=VALUE)")
    out().print(json_text({key: result.preset[key] for key in ("data", "model", "train")}), soft_wrap=True)
