"""Runs kernels in Triton's interpreter, which a process can only choose at its start: jobs in, errors out, as JSON."""

import json
import sys
from pathlib import Path

import torch

from kernels.dispatch import load, run
from tests.tensors.comparing import bound, cast, conditioning, example, flat, largest, mutant


def poisoned(*size, _empty=torch.empty, **options) -> torch.Tensor:
    """torch.empty, filled with NaN."""
    made = _empty(*size, **options)
    return made.fill_(torch.nan if made.is_floating_point() else -(2**30))


def done(job: dict, folder: Path) -> dict:
    """Error of a kernel against float64, the error allowed, and which implementation ran.

    A job names `op` and `case` (a name, or the seed of random sizes), and may have `old` and `new`: text of the module
    to replace first.
    """
    op, arguments = job["op"], example(job["op"], job["case"])
    truth = flat(load(op).reference(*cast(arguments, torch.float64)))
    allowed = bound(truth, flat(load(op).reference(*arguments)), conditioning(op, arguments))
    if "old" in job:
        value, by = mutant(op, job["old"], job["new"], folder).launch(*arguments), "mutant"
    else:
        value, by, _ = run(op, *arguments)
    return {"error": largest(flat(value) - truth), "allowed": allowed, "size": largest(truth), "by": by}


def main() -> None:
    """Jobs from standard input to standard output; mutated modules are written to the folder given."""
    torch.set_num_threads(1)
    torch.empty = poisoned
    print(json.dumps([done(job, Path(sys.argv[1])) for job in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
