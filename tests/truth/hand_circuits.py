"""Builds decoders with hand-set circuits: features are named directions, heads and MLPs are written in features.

A circuit is first written with one coordinate of the residual stream per feature; `Form` then says in which basis, with
which norm, distractors and noise it is handed to the search. Heads and MLPs that no circuit uses hold weak random
weights that read every feature and write every feature, as untrained leftovers do.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from interp.decoder import MLP, Attention, Decoder, Layer, Norm, affine, attend, normed, qkv

SHARP = 8.0  # attention logit of a planted target: more than .99 of the attention among ten places
LEFTOVER = 0.02  # standard deviation of the weights of parts that no circuit uses
LOUD = 0.15  # the same for what distractors read, and write where nobody reads
GAIN = 4.0  # logit of a feature of `out` that is on
ANCHOR = 4.0  # a constant feature in front of LayerNorm, so that its scale moves little with the other features
Rows = Float[Tensor, "row d_model"]


@dataclass(frozen=True)
class Form:
    """What a circuit is dressed in.

    Attributes:
        basis: "plain", one coordinate per feature; "rotated", at random; "superposed", fewer dimensions than features.
        layernorm: LayerNorm in front of every reader, scaled so that the features keep their size on average.
        distractors: unused heads and MLPs read the features loudly, attend by content, and write mostly where nobody
            of the circuit reads.
        noise: standard deviation of what is added to every weight.
    """

    basis: str = "plain"
    layernorm: bool = False
    distractors: bool = False
    noise: float = 0.0


FORMS = {
    "plain": Form(),
    "layernorm": Form(layernorm=True),
    "rotated": Form(basis="rotated"),
    "superposed": Form(basis="superposed"),
    "distractors": Form(distractors=True),
    "noise": Form(noise=0.01),
    "all": Form("rotated", layernorm=True, distractors=True, noise=0.01),
}


class Bench:
    """Features and empty layers, into which heads and MLPs are written.

    Args:
        n_tokens, n_pos: vocabulary and context; features `tok` and `pos` are written by the embedding, `one` is always
            on, `junk` is read by nobody, `anchor` is a constant for LayerNorm.
        more: further features and how many of each.
    """

    def __init__(self, n_tokens: int, n_pos: int, more: dict[str, int], layers: int = 2, heads: int = 3, seed: int = 0):
        sizes = {"tok": n_tokens, "pos": n_pos, "one": 1, "junk": 8, **more, "anchor": 1}
        self.width, self.n_pos = sum(sizes.values()), n_pos
        self.features = dict(zip(sizes, torch.eye(self.width).split(list(sizes.values())), strict=True))
        self.d_head = max(n_tokens, n_pos) + 2
        self.stream = torch.Generator().manual_seed(seed)
        self.heads, self.n_layers = heads, layers
        self.used: set[tuple[int, int]] = set()
        self.attn = [[self._leftover() for _ in range(heads)] for _ in range(layers)]
        self.units: list[list[tuple[Tensor, float, Tensor]]] = [[] for _ in range(layers)]

    def __getitem__(self, name: str) -> Rows:
        return self.features[name]

    def _weak(self, *shape: int, size: float = LEFTOVER) -> Tensor:
        return size * torch.randn(shape, generator=self.stream)

    def _leftover(self) -> list[Tensor]:
        reads = [self._weak(self.width, self.d_head) for _ in range(3)]
        return [*reads, self._weak(self.d_head, self.width)]

    def look(self, layer: int, head: int, *terms: tuple[Rows, Rows]) -> None:
        """Attention logits: SHARP times the sum over terms and rows of (query row . x_q)(key row . x_k)."""
        self._take(layer, head)
        first = 0
        for query, key in terms:
            last = first + len(query)
            self.attn[layer][head][0][:, first:last] += SHARP * query.T
            self.attn[layer][head][1][:, first:last] += key.T
            first = last

    def at(self, layer: int, head: int, place: int, query: int | None = None) -> None:
        """Attend to a fixed place: every query, or the one at `query`."""
        asking = self["one"] if query is None else self["pos"][query : query + 1]
        self.look(layer, head, (asking, self["pos"][place : place + 1]))

    def move(self, layer: int, head: int, *terms: tuple[Rows, Rows]) -> None:
        """The head adds a row of each term's second for the row of its first that its key has."""
        self._take(layer, head)
        reads = torch.stack(list({tuple(row.tolist()): row for read, _ in terms for row in read}.values()))
        for number, row in enumerate(reads):
            self.attn[layer][head][2][:, number] = row
            for read, write in terms:
                for one, to in zip(read, write, strict=True):
                    if bool((one == row).all()):
                        self.attn[layer][head][3][number] += to

    def _take(self, layer: int, head: int) -> None:
        if (layer, head) not in self.used:
            self.used.add((layer, head))
            self.attn[layer][head] = [torch.zeros_like(x) for x in self.attn[layer][head]]

    def unit(self, layer: int, reads: Tensor, threshold: float, writes: Tensor) -> None:
        """A unit of the layer's MLP: adds relu(reads . x - threshold) times `writes`."""
        self.units[layer].append((reads, threshold, writes))

    def both(self, layer: int, reads: Tensor, writes: Tensor, needed: int = 2) -> None:
        """Adds `writes` where all needed features of `reads` are on, with a margin of one half."""
        self.unit(layer, reads, needed - 0.5, 2 * writes)

    def decoder(self, form: Form, prompts: Int[Tensor, "batch pos"]) -> Decoder:
        """The decoder in a form; norms are scaled on the prompts."""
        layers = []
        for number, heads in enumerate(self.attn):
            if form.distractors:
                heads = [one if (number, h) in self.used else self._loud() for h, one in enumerate(heads)]
            parts = [torch.stack([one[which] for one in heads]) for which in range(4)]
            layers.append(Layer(None, Attention(*parts, *[None] * 4, scale=1.0), None, self._mlp(number, form)))
        w_pos = self["pos"] + self["one"] + (ANCHOR if form.layernorm else 0.0) * self["anchor"]
        unembed = GAIN * self["out"].T
        plain = Decoder(self["tok"], w_pos, None, tuple(layers), None, unembed, None, self.n_pos, "hand-set")
        return dressed(plain, form, prompts, self.stream)

    def _mlp(self, layer: int, form: Form) -> MLP:
        reads, thresholds, writes = zip(*self.units[layer], strict=True) if self.units[layer] else ((), (), ())
        size = LOUD if form.distractors else LEFTOVER
        rest = 6
        w_in = torch.cat(
            [
                torch.stack(reads).reshape(-1, self.width) if reads else self._weak(0, self.width),
                self._weak(rest, self.width, size=size),
            ]
        )
        out = self._weak(rest, self.width) + self._weak(rest, len(self["junk"]), size=size) @ self["junk"]
        w_out = torch.cat([torch.stack(writes).reshape(-1, self.width) if writes else self._weak(0, self.width), out])
        bias = torch.cat([-torch.tensor(thresholds, dtype=torch.float32), torch.zeros(rest)])
        return MLP(w_in.T.contiguous(), w_out, bias, None, None, None, "relu")

    def _loud(self) -> list[Tensor]:
        """A head that reads every feature, attends by content, and writes mostly where nobody reads."""
        reads = [self._weak(self.width, self.d_head, size=LOUD) for _ in range(3)]
        junk = self._weak(self.d_head, len(self["junk"]), size=LOUD) @ self["junk"]
        return [*reads, junk + self._weak(self.d_head, self.width)]


def dressed(plain: Decoder, form: Form, prompts: Int[Tensor, "batch pos"], stream: Generator) -> Decoder:
    """A decoder in feature coordinates as one in a basis, with noise and norms.

    Writers are multiplied by the features' directions, readers by their transpose: with orthonormal directions that
    changes nothing, superposed features leak into one another.
    """
    basis = directions(plain.d_model, form, stream)  # [feature d_model]
    layers = []
    for layer in plain.layers:
        read, attn, mlp = basis.T, layer.attn, layer.mlp
        attn = dataclasses.replace(
            attn, W_Q=read @ attn.W_Q, W_K=read @ attn.W_K, W_V=read @ attn.W_V, W_O=attn.W_O @ basis
        )
        mlp = dataclasses.replace(mlp, W_in=read @ mlp.W_in, W_out=mlp.W_out @ basis)
        layers.append(Layer(None, attn, None, mlp))
    found = dataclasses.replace(
        plain, W_E=plain.W_E @ basis, W_pos=plain.W_pos @ basis, W_U=basis.T @ plain.W_U, layers=tuple(layers)
    )
    if form.basis == "superposed":
        found = with_thresholds(found, plain, prompts)
    found = noisy(found, form.noise, stream) if form.noise else found
    return with_norms(found, prompts) if form.layernorm else found


def directions(n: int, form: Form, stream: Generator) -> Float[Tensor, "feature d_model"]:
    """A unit vector per feature; orthogonal to the all-ones vector where a LayerNorm would take that away.

    Superposed features have 0.9 dimensions each; the last one, the anchor, is orthogonal to all others.
    """
    if form.basis == "plain":
        rows = torch.eye(n)
    elif form.basis == "rotated":
        rows = rotation(torch.randn(n, n, generator=stream))
    else:
        width = math.ceil(0.9 * (n - 1))
        rows = packed(torch.randn(n - 1, width, generator=stream))
        rows = torch.block_diag(rows, torch.ones(1, 1)) @ rotation(torch.randn(width + 1, width + 1, generator=stream))
    if not form.layernorm:
        return rows
    width = rows.shape[1]
    return rows @ rotation(torch.cat((torch.ones(width + 1, 1), torch.eye(width + 1)[:, :width]), 1))[:, 1:].T


def rotation(rows: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
    """Orthonormal columns that span what given ones do, with the one choice of signs that rounding does not change."""
    turn, triangle = torch.linalg.qr(rows)
    return turn * triangle.diagonal().sign()


def packed(start: Float[Tensor, "feature width"], rounds: int = 30) -> Float[Tensor, "feature width"]:
    """Unit vectors that are as orthogonal to one another as a few rounds of clipping their products make them.

    The products fix vectors but for a rotation, and `eigh` may give any; the one in which vector i has its first i
    coordinates only is taken, so that another machine's rounding gives the same vectors.
    """
    rows = rotation(start.double())
    for _ in range(rounds):
        rows = rows / rows.norm(dim=1, keepdim=True)
        products = (rows @ rows.T).clamp(-0.08, 0.08).fill_diagonal_(1.0)
        values, vectors = torch.linalg.eigh(products)
        rows = vectors[:, -rows.shape[1] :] * values[-rows.shape[1] :].clamp(min=0).sqrt()
    rows = rows @ rotation(rows[: rows.shape[1]].T)
    return (rows / rows.norm(dim=1, keepdim=True)).to(start)


def noisy(decoder: Decoder, size: float, stream: Generator) -> Decoder:
    """Every weight with a normal number of standard deviation `size` added."""

    def more(x: Tensor) -> Tensor:
        return x + size * torch.randn(x.shape, generator=stream)

    layers = []
    for layer in decoder.layers:
        attn = dataclasses.replace(
            layer.attn, **{n: more(getattr(layer.attn, n)) for n in ("W_Q", "W_K", "W_V", "W_O")}
        )
        mlp = dataclasses.replace(layer.mlp, W_in=more(layer.mlp.W_in), W_out=more(layer.mlp.W_out))
        layers.append(Layer(None, attn, None, mlp))
    outer = {name: more(getattr(decoder, name)) for name in ("W_E", "W_pos", "W_U")}
    return dataclasses.replace(decoder, **outer, layers=tuple(layers))


def with_thresholds(decoder: Decoder, plain: Decoder, prompts: Int[Tensor, "batch pos"]) -> Decoder:
    """The decoder with the mean of what leaks into each MLP unit at the last position taken off its threshold."""
    x, y, layers = decoder.embed(prompts), plain.embed(prompts), []
    for layer, as_meant in zip(decoder.layers, plain.layers, strict=True):
        x, y = (_mid(one, stream) for one, stream in ((layer, x), (as_meant, y)))
        leak = (x[:, -1] @ layer.mlp.W_in - y[:, -1] @ as_meant.mlp.W_in).mean(0)
        layer = dataclasses.replace(layer, mlp=dataclasses.replace(layer.mlp, b_in=layer.mlp.b_in - leak))
        x, y = x + layer.mlp(x), y + as_meant.mlp(y)
        layers.append(layer)
    return dataclasses.replace(decoder, layers=tuple(layers))


def _mid(layer: Layer, x: Tensor) -> Tensor:
    """The stream behind the heads of a layer without norms."""
    return x + affine(attend(layer.attn, *qkv(layer, x))[0].flatten(-2), layer.attn.W_O.flatten(0, 1), None)


def with_norms(decoder: Decoder, prompts: Int[Tensor, "batch pos"]) -> Decoder:
    """The decoder with a LayerNorm in front of every reader, whose weight undoes the mean scale on the prompts."""

    def fitted(x: Tensor) -> Norm:
        size = (x - x.mean(-1, keepdim=True)).pow(2).mean(-1).sqrt().mean()
        return Norm(size.expand(x.shape[-1]).clone(), torch.zeros(x.shape[-1]), 1e-5, centred=True)

    x, layers = decoder.embed(prompts), []
    for layer in decoder.layers:
        one = dataclasses.replace(layer, ln1=fitted(x))
        z, _ = attend(one.attn, *qkv(one, normed(one.ln1, x)))
        x = x + affine(z.flatten(-2), one.attn.W_O.flatten(0, 1), None)
        one = dataclasses.replace(one, ln2=fitted(x))
        x = x + one.mlp(normed(one.ln2, x))
        layers.append(one)
    return dataclasses.replace(decoder, layers=tuple(layers), ln_final=fitted(x))
