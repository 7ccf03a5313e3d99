"""A circuit's run one prompt, head and query at a time: the definition that `circuits.masked` must equal."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.engine.record import Record, record
from circuits.graph import edge_graph
from interp.decoder import Decoder, Layer, normed


def written(decoder: Decoder, run: Record, prompt: int) -> dict[str, Float[Tensor, "pos d_model"]]:
    """What every sender writes for one prompt of a recorded run."""
    found = {"embed": run.layers[0].pre[prompt]}
    for index, (layer, kept) in enumerate(zip(decoder.layers, run.layers, strict=True)):
        found |= {f"L{index}.H{head}": kept.z[prompt, :, head] @ w for head, w in enumerate(layer.attn.W_O)}
        found |= {} if layer.mlp is None else {f"M{index}": kept.mlp_out[prompt]}
    return found


def run_circuit(
    decoder: Decoder,
    clean: Int[Tensor, "batch pos"],
    ablated: list[dict[str, Float[Tensor, "pos d_model"]]],
    kept: Float[Tensor, "sender receiver pos query"],
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of a circuit by position: each reader gets each sender's write over kept edges, its ablated one elsewhere.

    Args:
        ablated: for each prompt what every sender writes where it is not kept.
        kept: entry [s, r, p, q] is the edge from sender s at p to receiver r as query q reads it; p = q but for keys
            and values.
    """
    base = record(decoder, clean)
    return torch.stack([_one(decoder, written(decoder, base, i)["embed"], ablated[i], kept) for i in range(len(clean))])


def _one(decoder: Decoder, embed: Tensor, ablated: dict[str, Tensor], kept: Tensor) -> Float[Tensor, "pos d_vocab"]:
    graph, outs = edge_graph(decoder), {"embed": embed}
    constant = torch.zeros_like(embed)  # output biases, which belong to no sender

    def read(receiver: str, pos: int, query: int) -> Tensor:
        column, total = graph.receivers.index(receiver), constant[pos]
        for row, sender in enumerate(graph.senders):
            if sender in outs and graph.exists[row, column]:
                share = kept[row, column, pos, query]
                total = total + share * outs[sender][pos] + (1 - share) * ablated[sender][pos]
        return total

    for index, layer in enumerate(decoder.layers):
        heads = {f"L{index}.H{h}": _head(layer, index, h, len(embed), read) for h in range(len(layer.attn.W_Q))}
        biased = constant if layer.attn.b_O is None else constant + layer.attn.b_O
        if layer.parallel and layer.mlp is not None:
            mlp = torch.stack([layer.mlp(normed(layer.ln2, read(f"M{index}", p, p))) for p in range(len(embed))])
        outs |= heads
        constant = biased
        if not layer.parallel and layer.mlp is not None:
            mlp = torch.stack([layer.mlp(normed(layer.ln2, read(f"M{index}", p, p))) for p in range(len(embed))])
        outs |= {} if layer.mlp is None else {f"M{index}": mlp}
    return decoder.logits(torch.stack([read("logits", p, p) for p in range(len(embed))]))


def _head(layer: Layer, index: int, head: int, n_pos: int, read) -> Float[Tensor, "pos d_model"]:
    """What one head writes, query by query."""
    attn, group = layer.attn, head // layer.attn.group
    shared = f"L{index}.{'KV' if attn.group > 1 else 'H'}{group}"

    def project(receiver: str, pos: int, query: int, weight: Tensor, bias: Tensor | None, which: int) -> Tensor:
        out = normed(layer.ln1, read(receiver, pos, query)) @ weight[which]
        return out if bias is None else out + bias[which]

    def turned(x: Tensor, pos: int) -> Tensor:
        return x if attn.rotary is None else attn.rotary(x[None, None], torch.tensor([pos]))[0, 0]

    z = []
    for query in range(n_pos):
        q = turned(project(f"L{index}.H{head}.q", query, query, attn.W_Q, attn.b_Q, head), query)
        keys = [turned(project(f"{shared}.k", p, query, attn.W_K, attn.b_K, group), p) for p in range(query + 1)]
        values = [project(f"{shared}.v", p, query, attn.W_V, attn.b_V, group) for p in range(query + 1)]
        weight = (torch.stack(keys) @ q * attn.scale).softmax(0)
        z.append(weight @ torch.stack(values))
    return torch.stack(z) @ attn.W_O[head]
