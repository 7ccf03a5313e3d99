"""Trains small models whose edges are known: one functional forward with edges, stacked over seeds.

A model is a dictionary of tensors; every loss is a function of one model and is mapped over a stack of them, so that
several seeds train side by side. Edges are those between nodes: all inputs of a head share theirs.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor

from interp.decoder import MLP, Attention, Decoder, Layer, Norm

EPS = 1e-5
Model = dict[str, Tensor]
Outputs = Float[Tensor, "sender batch pos d_model"]


@dataclass(frozen=True)
class Size:
    """Shape of a trained model; `d_mlp` 0 leaves out the MLPs."""

    n_tokens: int
    n_pos: int
    d_model: int = 32
    heads: int = 2
    layers: int = 2
    d_head: int = 12
    d_mlp: int = 48
    layernorm: bool = False

    @property
    def senders(self) -> tuple[str, ...]:
        """The embedding, heads and MLPs in order of computation."""
        found = ["embed"]
        for layer in range(self.layers):
            found += [f"L{layer}.H{head}" for head in range(self.heads)] + ([f"M{layer}"] if self.d_mlp else [])
        return tuple(found)

    @property
    def nodes(self) -> tuple[str, ...]:
        """What reads: heads, MLPs and the logits."""
        return (*self.senders[1:], "logits")

    def before(self, node: str) -> int:
        """How many senders a node may read."""
        if node == "logits":
            return len(self.senders)
        number = self.senders.index(node)
        return number - int(node.rpartition(".H")[2]) if "." in node else number

    def mask(self, edges: tuple[str, ...]) -> Float[Tensor, "sender node"]:
        """1 for the named edges."""
        found = torch.zeros(len(self.senders), len(self.nodes))
        for edge in edges:
            sender, _, node = edge.partition("->")
            found[self.senders.index(sender), self.nodes.index(node)] = 1
        return found

    @property
    def all_edges(self) -> tuple[str, ...]:
        """Every edge that there could be."""
        return tuple(f"{sender}->{node}" for node in self.nodes for sender in self.senders[: self.before(node)])


def fresh(size: Size, stream: Generator) -> Model:
    """Random weights."""

    def draw(*shape: int, fan: int) -> Tensor:
        return torch.randn(shape, generator=stream) / math.sqrt(fan)

    d, n_layers, heads = size.d_model, size.layers, size.heads
    model = {
        "W_E": draw(size.n_tokens, d, fan=d // 2),
        "W_pos": draw(size.n_pos, d, fan=d // 2),
        "W_U": draw(d, size.n_tokens, fan=d),
        **{name: draw(n_layers, heads, d, size.d_head, fan=d) for name in ("W_Q", "W_K", "W_V")},
        "W_O": draw(n_layers, heads, size.d_head, d, fan=2 * size.d_head * heads),
    }
    if size.d_mlp:
        model |= {
            "W_in": draw(n_layers, d, size.d_mlp, fan=d),
            "b_in": torch.zeros(n_layers, size.d_mlp),
            "W_out": draw(n_layers, size.d_mlp, d, fan=2 * size.d_mlp),
        }
    return model


def run(
    model: Model,
    size: Size,
    tokens: Int[Tensor, "batch pos"],
    kept: Float[Tensor, "sender node"] | None = None,
    donor: Outputs | None = None,
    swapped: int | None = None,
) -> tuple[Float[Tensor, "batch d_vocab"], Outputs]:
    """Logits at the last position, and what every sender writes.

    Args:
        kept: edges that carry what this run computes; all others carry `donor`'s outputs. None: all.
        swapped: a sender whose output is the donor's for all readers.
    """
    outs = [model["W_E"][tokens] + model["W_pos"][: tokens.shape[1]]]

    def reads(node: int, count: int) -> Tensor:
        own = torch.stack(outs[:count])
        if kept is not None:
            some = kept[:count, node, None, None, None]
            own = some * own + (1 - some) * donor[:count]
        x = own.sum(0)
        return F.layer_norm(x, x.shape[-1:], eps=EPS) if size.layernorm else x

    def write(out: Tensor) -> None:
        outs.append(donor[len(outs)] if swapped == len(outs) else out)

    later = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
    node = 0
    for layer in range(size.layers):
        count = len(outs)
        for head in range(size.heads):
            x = reads(node, count)
            q, k, v = (x @ model[name][layer, head] for name in ("W_Q", "W_K", "W_V"))
            scores = (q @ k.mT / math.sqrt(size.d_head)).masked_fill(later, -torch.inf)
            write(scores.softmax(-1) @ v @ model["W_O"][layer, head])
            node += 1
        if size.d_mlp:
            hidden = F.relu(reads(node, len(outs)) @ model["W_in"][layer] + model["b_in"][layer])
            write(hidden @ model["W_out"][layer])
            node += 1
    return reads(node, len(outs))[:, -1] @ model["W_U"], torch.stack(outs)


def decoder_of(model: Model, size: Size, name: str) -> Decoder:
    """The same model as plain weights."""
    norm = Norm(torch.ones(size.d_model), torch.zeros(size.d_model), EPS, centred=True) if size.layernorm else None
    layers = []
    for layer in range(size.layers):
        parts = [model[part][layer] for part in ("W_Q", "W_K", "W_V", "W_O")]
        mlp = None
        if size.d_mlp:
            mlp = MLP(model["W_in"][layer], model["W_out"][layer], model["b_in"][layer], None, None, None, "relu")
        attn = Attention(*parts, *[None] * 4, scale=1 / math.sqrt(size.d_head))
        layers.append(Layer(norm, attn, norm if mlp is not None else None, mlp))
    return Decoder(model["W_E"], model["W_pos"], None, tuple(layers), norm, model["W_U"], None, size.n_pos, name)


def turned(decoder: Decoder, stream: Generator) -> Decoder:
    """The decoder in a random orthonormal basis of the residual stream; for models without norms."""
    turn = torch.linalg.qr(torch.randn(decoder.d_model, decoder.d_model, generator=stream, dtype=torch.float64))[0]
    turn = turn.to(decoder.W_E)
    layers = []
    for layer in decoder.layers:
        read = {name: turn.T @ getattr(layer.attn, name) for name in ("W_Q", "W_K", "W_V")}
        attn = dataclasses.replace(layer.attn, **read, W_O=layer.attn.W_O @ turn)
        mlp = layer.mlp
        if mlp is not None:
            mlp = dataclasses.replace(mlp, W_in=turn.T @ mlp.W_in, W_out=mlp.W_out @ turn)
        layers.append(dataclasses.replace(layer, attn=attn, mlp=mlp))
    outer = {"W_E": decoder.W_E @ turn, "W_pos": decoder.W_pos @ turn, "W_U": turn.T @ decoder.W_U}
    return dataclasses.replace(decoder, **outer, layers=tuple(layers))


def block_masks(size: Size, edges: tuple[str, ...], width: int) -> Model:
    """0/1 factors of the weights that give every sender its own `width` coordinates, read along the edges only.

    The embedding's block takes what is left of d_model. What a reader has no edge from, it multiplies by zero: such
    an edge cannot have any effect, in whatever basis.
    """
    allowed = size.mask(edges)
    first = size.d_model - width * (len(size.senders) - 1)
    owner = torch.zeros(size.d_model, dtype=torch.long)
    for number in range(1, len(size.senders)):
        owner[first + (number - 1) * width : first + number * width] = number
    writes = F.one_hot(owner, len(size.senders)).T.float()  # [sender d_model]
    reads = allowed.T @ writes  # [node d_model]
    found = {"W_E": writes[:1], "W_pos": writes[:1], "W_U": reads[-1][:, None]}
    heads = torch.tensor([number for number, name in enumerate(size.nodes) if "." in name]).view(size.layers, -1)
    found |= {name: reads[heads][..., None] for name in ("W_Q", "W_K", "W_V")}
    found["W_O"] = writes[heads + 1][:, :, None]
    if size.d_mlp:
        mlps = torch.tensor([number for number, name in enumerate(size.nodes) if name[0] == "M"])
        found |= {"W_in": reads[mlps][..., None], "W_out": writes[mlps + 1][:, None]}
    return found


Batch = dict[str, Tensor]
Loss = Callable[[Model, Batch], Tensor]


def train(
    models: list[Model],
    loss: Loss,
    batches: Callable[[], Batch],
    steps: int,
    rate: float = 3e-3,
    factors: list[Model] | None = None,
) -> list[Model]:
    """The models after so many steps of AdamW on the same batches, rate warmed up and brought to 0 by a cosine.

    Args:
        factors: multiplied onto the weights of each model.
    """
    stacked = {name: torch.stack([one[name] for one in models]).requires_grad_() for name in models[0]}
    fixed = {name: torch.stack([one[name] for one in factors]) for name in factors[0]} if factors else {}
    optimizer = torch.optim.AdamW(stacked.values(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    each = torch.vmap(loss, in_dims=(0, None))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        total = each({name: x * fixed[name] if name in fixed else x for name, x in stacked.items()}, batches())
        optimizer.zero_grad()
        total.sum().backward()
        for which in range(len(models)):  # clip each model by its own gradient
            own = [x.grad[which] for x in stacked.values()]
            scale = (1.0 / torch.stack([g.norm() for g in own]).norm()).clamp(max=1.0)
            for g in own:
                g.mul_(scale)
        optimizer.step()
    done = {name: (x * fixed[name] if name in fixed else x).detach() for name, x in stacked.items()}
    return [{name: x[which].clone() for name, x in done.items()} for which in range(len(models))]
