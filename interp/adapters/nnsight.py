"""Any `nn.Module` as a hooked model through nnsight, given a small map of where its sites are."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.adapters.bridge import HOOKS
from interp.errors import UnknownName, UsageError

ORDER = ("resid_pre", "q", "k", "v", "z", "attn_out", "mlp_post", "mlp_out", "resid_post")  # as a block runs them
KEYED, HEADED = ("k", "v"), ("q", "k", "v", "z")
Hook = tuple[str | Callable[[str], bool], Callable[..., Tensor | None]]


@dataclass(frozen=True)
class Place:
    """Where a site is read and written.

    Attributes:
        module: dotted name of a module, with `{layer}` for the number of the block.
        end: its input (the first positional argument) or its output.
        index: which item, for an output that is a tuple.
        columns: [start, stop) of the last axis, for several sites side by side in one tensor.
    """

    module: str
    end: Literal["input", "output"] = "output"
    index: int | None = None
    columns: tuple[int, int] | None = None


def place_of(text: str | Place) -> Place:
    """A place written as "h.{layer}.attn.c_proj.input", "h.{layer}.output" or, of a tuple, "h.{layer}.output.0".

    Raises:
        UsageError: for any other text.
    """
    if isinstance(text, Place):
        return text
    parts = text.split(".")
    index = int(parts.pop()) if parts[-1].isdecimal() and parts[-2:-1] == ["output"] else None
    if len(parts) < 2 or parts[-1] not in ("input", "output"):
        raise UsageError(
            f"place {text!r}: expected a module's name and .input or .output, such as 'h.{{layer}}.output'"
        )
    return Place(".".join(parts[:-1]), parts[-1], index)


@dataclass(frozen=True)
class Shape:
    """What patching must know of the model beside its sites; the names are those of a bridge's `cfg`."""

    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_vocab: int
    n_ctx: int


class SitedModule:
    """An `nn.Module` whose sites have TransformerLens' hook names; made by `with_sites`.

    Attributes:
        hook_dict: hook names that can be read and written.
    """

    def __init__(self, module: nn.Module, sites: Mapping[str, Place], cfg: Shape):
        from nnsight import NNsight

        self.module, self.sites, self.cfg = module, dict(sites), cfg
        self.envoy = NNsight(module)
        self.blocks = range(cfg.n_layers)
        mid = ("resid_mid",) if {"resid_pre", "attn_out"} <= set(sites) else ()
        self.points = {f"blocks.{n}.{HOOKS[site]}": (site, n) for n in self.blocks for site in (*sites, *mid)}
        self.hook_dict = {name: SimpleNamespace(name=name) for name in self.points}

    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        return _logits(self.module(tokens))

    def run_with_hooks(
        self, tokens: Int[Tensor, "batch pos"], *, fwd_hooks: Sequence[Hook] = ()
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of one run with these hooks, each called as `fn(activation, hook=point)`.

        Raises:
            UnknownName: for a hook name that the map of sites does not give.
            UsageError: for a place whose value is no tensor of the site's shape, or a block that runs in another order.
        """
        from nnsight.intervention.interleaver import OutOfOrderError

        edits = self._in_order(fwd_hooks)
        envoy = self.envoy
        try:
            with envoy.trace(tokens):
                for place, module, edit in edits:
                    target = envoy.get(module)
                    if place.end == "input":
                        target.input = edit(target.input)
                    else:
                        target.output = edit(target.output)
                found = envoy.output.save()
        except OutOfOrderError as error:
            raise UsageError(
                f"sites run in another order than {', '.join(ORDER)}: {error}; hook one at a time"
            ) from None
        return _logits(found)

    def run_with_cache(
        self, tokens: Int[Tensor, "batch pos"], *, names_filter: str | Sequence[str] | Callable | None = None
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], dict[str, Tensor]]:
        """Logits and the detached activations whose names pass the filter; None keeps all but resid_mid."""
        wanted = [name for name in self._named(names_filter) if self.points[name][0] != "resid_mid"]
        found: dict[str, Tensor] = {}

        def keep(activation: Tensor, hook: Any) -> None:
            found[hook.name] = activation.detach().clone()

        return self.run_with_hooks(tokens, fwd_hooks=[(name, keep) for name in wanted]), found

    def _named(self, names: str | Sequence[str] | Callable | None) -> list[str]:
        if names is None or callable(names):
            return [name for name in self.hook_dict if names is None or names(name)]
        chosen = [names] if isinstance(names, str) else list(names)
        for name in chosen:
            if name not in self.hook_dict:
                raise UnknownName("hook point", name, self.hook_dict)
        return chosen

    def _in_order(self, hooks: Sequence[Hook]) -> list[tuple[Place, str, Callable[[Any], Any]]]:
        """(place, module, edit of its raw value) for every hook, in the order in which a model runs its sites."""
        chosen = [(name, hook) for names, hook in hooks for name in self._named(names)]
        for name, _ in chosen:
            if self.points[name][0] == "resid_mid":
                raise UsageError(f"{name}: is written through resid_pre and attn_out; take `site_hooks`")
        chosen.sort(key=lambda one: (self.points[one[0]][1], ORDER.index(self.points[one[0]][0])))
        found = []
        for name, hook in chosen:
            site, layer = self.points[name]
            place = self.sites[site]
            found.append((place, place.module.format(layer=layer), self._edit(name, place, hook)))
        return found

    def _edit(self, name: str, place: Place, hook: Callable) -> Callable[[Any], Any]:
        """The function of the module's raw input or output that calls the hook with the site's own shape."""
        site, _ = self.points[name]
        heads = self.cfg.n_key_value_heads if site in KEYED else self.cfg.n_heads

        def edit(raw: Any) -> Any:
            whole = raw if place.index is None else raw[place.index]
            value = _part(name, place, whole)
            shaped = _split(name, value, heads) if site in HEADED else value
            new = hook(shaped.clone(), hook=self.hook_dict[name])
            if new is None:
                return raw
            if new.shape != shaped.shape:
                raise UsageError(f"{name}: a hook returned {list(new.shape)}, expected {list(shaped.shape)}")
            joined = _joined(place, whole, new.reshape(value.shape))
            return joined if place.index is None else type(raw)((*raw[: place.index], joined, *raw[place.index + 1 :]))

        return edit


def _part(name: str, place: Place, whole: Any) -> Tensor:
    if not isinstance(whole, Tensor):
        raise UsageError(
            f"{name}: the {place.end} of {place.module} is a {type(whole).__name__}; for a tuple name the item, such "
            f"as '{place.module}.output.0'"
        )
    return whole if place.columns is None else whole[..., slice(*place.columns)]


def _joined(place: Place, whole: Tensor, new: Tensor) -> Tensor:
    if place.columns is None:
        return new
    start, stop = place.columns
    return torch.cat((whole[..., :start], new, whole[..., stop:]), -1)


def _split(name: str, value: Tensor, heads: int) -> Float[Tensor, "batch pos head d_head"]:
    if value.ndim == 4 and value.shape[2] == heads:
        return value
    if value.ndim != 3 or value.shape[-1] % heads:
        raise UsageError(
            f"{name}: has the shape {list(value.shape)}, expected [batch, pos, {heads} heads * d_head], or "
            f"[batch, pos, {heads}, d_head]"
        )
    return value.unflatten(-1, (heads, -1))


def _logits(output: Any) -> Float[Tensor, "batch pos d_vocab"]:
    found = getattr(output, "logits", output)
    if not isinstance(found, Tensor) or found.ndim != 3:
        raise UsageError(
            f"the model returns {type(output).__name__}, expected logits [batch, pos, d_vocab] or an object with them"
        )
    return found


def with_sites(
    module: nn.Module,
    sites: Mapping[str, str | Place],
    *,
    n_layers: int,
    n_heads: int,
    d_vocab: int,
    n_ctx: int,
    n_key_value_heads: int | None = None,
) -> SitedModule:
    """A model that `patch_heads` patches by full forwards, and whose activations can be read by hook name.

    Args:
        module: called with tokens [batch pos]; in eval mode.
        sites: place of each site, as in `place_of`. q, k, v and z hold their heads side by side; the sites are those
            of `interp.adapters.bridge.hook_name`. With resid_pre and attn_out there is resid_mid, too; leave attn_out
            out where attention and MLP run in parallel.

    Raises:
        UnknownName: for a site or module that does not exist.
        UsageError: for a place that cannot be read, and for a module in training mode with dropout.
    """
    known = dict(module.named_modules(remove_duplicate=False))
    places = {site: place_of(text) for site, text in sites.items()}
    for site, place in places.items():
        if site not in ORDER:
            raise UnknownName("site", site, ORDER)
        if "{layer}" not in place.module:
            raise UsageError(f"{site}: {place.module!r} has no {{layer}} for the number of the block")
        for layer in range(n_layers):
            if (name := place.module.format(layer=layer)) not in known:
                raise UnknownName(f"module for {site}", name, _near(name, known))
    if any(isinstance(one, nn.Dropout) and one.training and one.p > 0 for one in known.values()):
        raise UsageError("the module is in training mode with dropout; call .eval() on it first")
    return SitedModule(module, places, Shape(n_layers, n_heads, n_key_value_heads or n_heads, d_vocab, n_ctx))


def _near(name: str, known: Iterable[str]) -> list[str]:
    """Names in the deepest part of the model that the name leads to."""
    names, above = [one for one in known if one], name
    while above := above.rpartition(".")[0]:
        if inside := [one for one in names if one.rpartition(".")[0] == above]:
            return inside
    return [one for one in names if "." not in one]
