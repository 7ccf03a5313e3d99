"""What fully determines a training run: frozen pydantic models, read from TOML and `--set key=value`."""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from interp.errors import ConfigError, UnknownName

FORMAT = 1


class Frozen(BaseModel):
    """Base of every configuration: immutable, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Frozen):
    """Shape of a `Transformer`; `d_vocab` and `n_ctx` of 0 are filled in from the task."""

    n_layers: int = Field(2, ge=1)
    n_heads: int = Field(1, ge=1)
    d_model: int = Field(32, ge=1)
    d_head: int = Field(0, ge=0, description="0: d_model // n_heads")
    d_mlp: int = Field(0, ge=0, description="0: 4 * d_model")
    d_vocab: int = Field(0, ge=0)
    n_ctx: int = Field(0, ge=0)
    norm: Literal["layer", "rms", "none"] = "layer"
    norm_bias: bool = False
    norm_eps: float = Field(1e-5, gt=0)
    embed_norm: bool = Field(False, description="one norm right after token + position embedding")
    final_norm: bool = True
    residual: Literal["standard", "normed"] = Field(
        "standard", description="'normed': attention adds to the normed stream, as in the Iteration Head authors' code"
    )
    positions: Literal["learned", "rotary", "none"] = "learned"
    pos_dim: int = Field(0, ge=0, description="learned positions live in the first pos_dim coordinates; 0: in all")
    rotary_base: float = Field(10000.0, gt=0)
    activation: Literal["gelu", "relu", "swiglu"] = "gelu"
    attn_only: bool = False
    bias: bool = Field(False, description="biases on Q, K, V, O, the MLP and the unembedding")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the embedding")
    tied: bool = Field(False, description="the unembedding is the transposed token embedding")
    frozen: tuple[str, ...] = Field((), description="parameter-name patterns (fnmatch) that are not trained")

    @model_validator(mode="after")
    def _derived_widths(self) -> "ModelConfig":
        if self.d_head == 0 and self.d_model % self.n_heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}; set d_head")
        if self.positions == "rotary" and self.head_width % 2:
            raise ValueError(f"rotary positions need an even d_head, got {self.head_width}")
        if self.pos_dim > self.d_model:
            raise ValueError(f"pos_dim={self.pos_dim} is larger than d_model={self.d_model}")
        return self

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "ModelConfig":
        if self.norm == "none" and self.embed_norm:
            raise ValueError("embed_norm needs norm='layer' or 'rms', not 'none'")
        if self.norm == "none" and self.residual == "normed":
            raise ValueError("residual='normed' needs norm='layer' or 'rms', not 'none'")
        if self.pos_dim and self.positions != "learned":
            raise ValueError(f"pos_dim={self.pos_dim} needs positions='learned', not {self.positions!r}")
        return self

    @property
    def head_width(self) -> int:
        """d_head after its default is filled in."""
        return self.d_head or self.d_model // self.n_heads

    @property
    def mlp_width(self) -> int:
        """d_mlp after its default is filled in."""
        return self.d_mlp or 4 * self.d_model


class DataConfig(Frozen):
    """How many distinct sequences per length, and the share of them used for training."""

    per_length: int = Field(2048, ge=2)
    train_share: float = Field(0.5, gt=0, lt=1)


class TrainConfig(Frozen):
    """Optimiser, schedule, evaluation and checkpoint spacing; times are in seconds, the rest in steps."""

    steps: int = Field(12_000, ge=0)
    batch_size: int = Field(32, ge=1)
    loss: Literal["states", "all"] = Field(
        "states", description="'states': predictions of s_1..s_L and the first EoS; 'all': every position"
    )
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(2e-3, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = Field(100, ge=0)
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0: no clipping")
    eval_every: int = Field(250, ge=1)
    eval_sequences: int = Field(128, ge=1, description="held-out sequences per length at each evaluation")
    track_every: int = Field(250, ge=1)
    track_move: float = Field(0.1, gt=0, description="a tracked score moving this far makes an extra checkpoint")
    checkpoint_ratio: float = Field(1.4, gt=1, description="ratio of neighbouring logarithmic checkpoint steps")
    checkpoint_first: int = Field(64, ge=1)
    rolling_seconds: float = Field(30.0, gt=0)
    stop_accuracy: float = Field(0.998, gt=0, le=1.0, description="stop once every length reaches it; 1.0 may never")
    stop_patience: int = Field(4, ge=1, description="evaluations in a row at stop_accuracy before stopping")
    threads: int = Field(1, ge=1)
    device: str = "cpu"


class RunConfig(Frozen):
    """Everything that determines a run; the same config and seed give the same weights on the same machine."""

    format: Literal[1] = FORMAT
    task: str
    task_params: dict[str, Any] = Field(default_factory=dict)
    seed: int = Field(0, ge=0)
    init: str | None = Field(None, description="run whose weights are the starting point")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()

    def hash(self) -> str:
        """sha256 of the canonical JSON form."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def validated(cls: type[BaseModel], values: Any, where: str) -> Any:
    """Build `cls` from plain values, turning pydantic's report into one line with the nearest known key.

    Raises:
        ConfigError: naming `where`, the key, what was given and what is accepted.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "(whole)"
        if first["type"] == "extra_forbidden":
            known = _fields_at(cls, first["loc"][:-1])
            raise ConfigError(f"{where}: {UnknownName('key', key, known)}") from None
        raise ConfigError(f"{where}: {key}: {first['msg']} (got {first.get('input')!r:.80})") from None


def _fields_at(cls: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Dotted names of the fields that a model accepts below `path`."""
    for part in path:
        field = cls.model_fields.get(str(part))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        cls = inner
    return [".".join([*map(str, path), name]) for name in cls.model_fields]


def parse_assignment(text: str) -> tuple[list[str], Any]:
    """Split `train.lr=3e-4` into its path and a value read as TOML, or as a plain string where TOML cannot.

    Raises:
        ConfigError: if there is no '=' or the key is empty.
    """
    key, sep, raw = text.partition("=")
    if not sep or not key.strip():
        raise ConfigError(f"--set {text!r}: expected key=value, for example --set train.lr=3e-4")
    try:
        value = tomllib.loads(f"v = {raw.strip()}")["v"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    return key.strip().split("."), value


def merged(values: dict[str, Any], changes: list[tuple[list[str], Any]]) -> dict[str, Any]:
    """A copy of nested `values` with each (path, value) put in place."""
    result = json.loads(json.dumps(values))
    for path, value in changes:
        inner = result
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {'.'.join(path)}: {part!r} is a value, not a section")
        inner[path[-1]] = value
    return result


def read_toml(path: Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        ConfigError: if the file is missing or is not TOML; the message names the file.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML ({error})") from None
