"""What kernels are compared with: the operations written out naively, and the rule that bounds an error."""

import dataclasses
import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import load, names
from kernels.one_column import State, recorded

ROOT = Path(__file__).resolve().parents[2]
CASES = [(op, case) for op in names() for case in load(op).CASES]
# Beside twice the eager error, an error of two units in the last place of the largest value is allowed: in a case of
# few numbers the eager error can be zero by luck.
FLOOR = 2 * torch.finfo(torch.float32).eps
DRAWS = 4  # of inputs that are off by as much, to see what that does to the result


def cast(value: Any, dtype: torch.dtype | None, device: torch.device | str = "cpu") -> Any:
    """Nested tuples and dataclasses with every tensor on a device, floating-point ones in another dtype unless None."""
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, tuple):
        return tuple(cast(item, dtype, device) for item in value)
    if dataclasses.is_dataclass(value):
        return type(value)(*(cast(getattr(value, f.name), dtype, device) for f in dataclasses.fields(value)))
    return value


def flat(value: Any) -> Tensor:
    """All numbers of a tensor or of a tuple of tensors."""
    parts = value if isinstance(value, tuple) else (value,)
    return torch.cat([part.flatten().double().cpu() for part in parts])


def largest(x: Tensor) -> float:
    """Largest magnitude; 0 of nothing, and NaN counts as infinite."""
    return float(x.abs().nan_to_num(torch.inf).max()) if x.numel() else 0.0


def bound(truth: Tensor, eager: Tensor, floor: float = 0.0) -> float:
    """Largest error allowed: twice the eager one in the same dtype, and two last places or the floor given."""
    return 2 * largest(eager - truth) + max(FLOOR * largest(truth), floor)


def conditioning(op: str, arguments: tuple) -> float:
    """What inputs off by one unit in the last place do to the result, at most over a few draws of their signs.

    A result that is a difference of larger numbers (o' - o of attention, logits inside a divergence) cannot be had to
    two of its own last places in any order of summation; this is the floor that its summands set.
    """
    exact, draw = cast(arguments, torch.float64), torch.Generator().manual_seed(0)
    truth = flat(load(op).reference(*exact))
    return max(largest(flat(load(op).reference(*shaken(exact, draw))) - truth) for _ in range(DRAWS))


def shaken(value: Any, draw: torch.Generator) -> Any:
    """Nested tuples and dataclasses with every floating-point number off by one unit in the last place of float32."""
    if isinstance(value, Tensor) and value.is_floating_point():
        sign = 1 - 2 * torch.randint(2, value.shape, generator=draw).to(value)
        return value * (1 + FLOOR / 2 * sign)
    if isinstance(value, tuple):
        return tuple(shaken(item, draw) for item in value)
    if dataclasses.is_dataclass(value):
        return type(value)(*(shaken(getattr(value, f.name), draw) for f in dataclasses.fields(value)))
    return value


def example(op: str, case: str | int) -> tuple:
    """The arguments of a case, or of random sizes drawn with a seed."""
    module = load(op)
    sizes = module.CASES[case] if isinstance(case, str) else DRAWN[op](module.Case, random.Random(case))
    return module.example(sizes, torch.Generator().manual_seed(0))


def drawn_heads(draw: random.Random) -> dict[str, int]:
    """Random numbers of heads, grouped or not, and their size."""
    kv_heads = draw.randint(1, 2)
    return {"heads": kv_heads * draw.randint(1, 3), "kv_heads": kv_heads, "d_head": draw.randint(1, 40)}


def drawn_spans(case: type, draw: random.Random) -> Any:
    """Groups of random prompts, spans and branches; some with only some of their queries, some empty."""
    n_pos, batch, spans = draw.randint(1, 40), draw.randint(1, 3), []
    for _ in range(draw.randint(1, 4)):
        first = draw.randrange(n_pos)
        stop = draw.randint(first + 1, n_pos)
        some = tuple(sorted(draw.sample(range(first, stop), draw.randint(0, stop - first))))
        spans.append((draw.randrange(batch), first, stop, draw.randint(0, 5), draw.choice((None, some))))
    return case(tuple(spans), batch, n_pos, **drawn_heads(draw), sink=draw.choice((0.0, 12.0)))


DRAWN = {
    "one_column": lambda case, draw: case(
        draw.randint(1, 3), draw.randint(3, 50), **drawn_heads(draw), n_patches=draw.randint(0, 9)
    ),
    "suffix_attention": drawn_spans,
    "delta_norm": lambda case, draw: case(
        draw.randint(0, 40), draw.randint(1, 5), draw.randint(4, 300), draw.random() < 0.5, patches=draw.randint(0, 3)
    ),
    "norm_logit": lambda case, draw: case(
        draw.randint(0, 40), draw.randint(1, 5), draw.randint(4, 300), draw.randint(1, 4), draw.random() < 0.5
    ),
    "delta_gemm": lambda case, draw: case(*(draw.randint(1, 90) for _ in range(4))),
    "kl": lambda case, draw: case(draw.randint(0, 70), *(draw.randint(1, 90) for _ in range(3))),
}


def causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Masked scores [head q_pos k_pos] and output [pos head d_head] of one prompt."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * scale
    scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -torch.inf)
    return scores, torch.einsum("hij,jhd->ihd", scores.softmax(-1), v)


def rebuilt(op: str, arguments: tuple) -> tuple:
    """The arguments with what derives from a base run recorded anew, in the arguments' own dtype."""
    if op not in ("one_column", "suffix_attention"):
        return arguments
    q, k, v, derived, *rest = arguments
    runs = [causal(q[b], k[b], v[b], rest[-1]) for b in range(len(q))]
    state = recorded(torch.stack([scores for scores, _ in runs]), v)
    return (q, k, v, state if isinstance(derived, State) else torch.stack([o for _, o in runs]), *rest)


def one_column(q, k, v, state, patches, d_k, d_v, scale):
    """Every patch by a full attention with the column replaced."""
    rows = []
    for j, (b, p) in enumerate(zip(patches.prompt.tolist(), patches.column.tolist(), strict=True)):
        key, value = k[b].clone(), v[b].clone()
        key[p], value[p] = key[p] + d_k[j], value[p] + d_v[j]
        change = causal(q[b], key, value, scale)[1] - causal(q[b], k[b], v[b], scale)[1]
        rows.append(change[int(patches.start[j]) : int(patches.stop[j])])
    return torch.cat(rows) if rows else q.new_zeros(0, *q.shape[2:])


def suffix_attention(q, k, v, o, groups, d_q, d_k, d_v, scale):
    """Every branch by a full attention over its whole sequence."""
    rows, queries, keys = [], d_q.clone(), [d_k.clone(), d_v.clone()]
    for g, (b, first, stop, n) in enumerate(
        zip(groups.prompt, groups.first, groups.stop, groups.branches, strict=True)
    ):
        pos = groups.query_pos[groups.query_begin[g] : groups.query_begin[g + 1]]
        for _ in range(int(n)):
            query, key, value = q[b].clone(), k[b].clone(), v[b].clone()
            query[pos] += queries[: len(pos)]
            key[first:stop] += keys[0][: stop - first]
            value[first:stop] += keys[1][: stop - first]
            queries, keys = queries[len(pos) :], [x[stop - first :] for x in keys]
            rows.append((causal(query, key, value, scale)[1] - o[b])[pos])
    return torch.cat(rows) if rows else torch.zeros_like(d_q)


def norm(x: Tensor, w: Tensor | None, eps: float, centred: bool) -> Tensor:
    """LayerNorm or RMSNorm without bias."""
    return F.layer_norm(x, x.shape[-1:], w, None, eps) if centred else F.rms_norm(x, x.shape[-1:], w, eps)


def delta_norm(base, index, delta, w, eps, centred, patch=None, patch_of=None):
    """The plain difference of two norms."""
    if patch is not None:
        delta = delta + torch.where((patch_of >= 0)[:, None], patch[patch_of], 0)
    return norm(base[index] + delta, w, eps, centred) - norm(base[index], w, eps, centred), delta


def norm_logit(base, index, delta, w, eps, centred, directions):
    """Logits of both rows, subtracted."""
    after, before = (norm(x, w, eps, centred)[:, None] for x in (base[index] + delta, base[index]))
    return (after * directions[index]).sum(-1) - (before * directions[index]).sum(-1)


def delta_gemm(h, index, a, b, activation, precision):
    """The plain difference of two activations."""
    act = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}
    return act[activation](h[index] + a.to(h) @ b.to(h)) - act[activation](h[index])


def kl(logits, index, y, W_U):
    """Sum of p (log p - log q)."""
    before, after = logits[index].log_softmax(-1), (logits[index] + y.to(logits) @ W_U.to(logits)).log_softmax(-1)
    return (before.exp() * (before - after)).sum(-1)


NAIVE = {f.__name__: f for f in (one_column, suffix_attention, delta_norm, norm_logit, delta_gemm, kl)}


def mutant(op: str, old: str, new: str, folder: Path) -> ModuleType:
    """A copy of the operation's module in which `old`, which must occur once, reads `new`."""
    text = Path(load(op).__file__).read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise ValueError(f"{op}: {old!r} occurs {text.count(old)} times, expected once")
    path = folder / f"{op}_{len(list(folder.iterdir()))}.py"
    path.write_text(text.replace(old, new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def interpreted(jobs: list[dict], folder: Path) -> list[dict]:
    """Run jobs (see run_interpreted.py) in one fresh process, in Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"KERNELS_IMPL": "interpret", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.tensors.run_interpreted", str(folder)]
    done = subprocess.run(
        command, input=json.dumps(jobs), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout)
