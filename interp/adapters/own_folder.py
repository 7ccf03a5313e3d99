"""A folder of `interp export --to hf` in our own names: a model that no Hugging Face class computes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.adapters.weight_files import Stored, require_shapes
from interp.config import ModelConfig, validated
from interp.decoder import Decoder, decoder_of
from interp.errors import CheckpointError, StoreError
from interp.model import Transformer

MODEL_TYPE = "interp_transformer"
FORMAT = 1


def own_decoder(body: Mapping[str, Any], found: Mapping[str, Stored], place: Path) -> Decoder:
    """The decoder of a configuration and the tensors beside it.

    Raises:
        StoreError: for a configuration of a newer format, or of no model.
        ConfigError: naming the key that is wrong.
        CheckpointError: for tensors that are missing, unknown, of another shape, or not finite.
    """
    if body.get("format") != FORMAT:
        raise StoreError(f"{place}: format {body.get('format')!r:.20}, this program reads {FORMAT}; update it")
    config = validated(ModelConfig, body.get("model"), f"{place}: model")
    _require_anchored(config, found, place)
    model = Transformer(config, seed=0)
    require_shapes(found, {key: tuple(value.shape) for key, value in model.state_dict().items()}, str(place))
    model.load_state_dict({key: stored.load().float() for key, stored in found.items()})
    return decoder_of(model.eval())


def _require_anchored(config: ModelConfig, found: Mapping[str, Stored], place: Path) -> None:
    """Refuse sizes that the file does not hold, before room is made for them."""
    d_model, last = config.d_model, f"blocks.{config.n_layers - 1}.attn.W_O"
    sizes: dict[str, tuple[int, ...]] = {"embed.W_E": (config.d_vocab, d_model)}
    sizes[last] = (config.n_heads, config.head_width, d_model)
    if not config.attn_only:
        sizes["blocks.0.mlp.W_in"] = (d_model, config.mlp_width)
    if config.positions == "learned":
        sizes["pos_embed.W_pos"] = (config.n_ctx, config.pos_dim or d_model)
    if config.n_layers > len(found):
        raise CheckpointError(f"{place}: gives {config.n_layers} layers, the weights are {len(found)} tensors")
    for key, size in sizes.items():
        stored = found.get(key)
        if stored is None or stored.shape != size:
            shape = "nothing" if stored is None else list(stored.shape)
            raise CheckpointError(f"{place}: gives {key} the shape {list(size)}, the weights hold {shape}")
