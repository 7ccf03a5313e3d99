"""A model read from disk, whatever wrote it: its decoder with what must be known to use and to cite it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # torch is loaded by the doors, so that naming a kind stays quick
    from interp.adapters.drift import Drift
    from interp.decoder import Decoder

Kind = Literal[
    "interp run",
    "transformer-lens state dict",
    "hugging face folder",
    "hugging face series",
    "nanogpt checkpoint",
]
Flag = bool | Literal["unknown"]


@dataclass(frozen=True)
class Processing:
    """What was done to the weights and how prompts are laid out: all of it changes zero ablation and edges.

    Attributes:
        bos: whether prompts start with a beginning-of-sequence token.
        padding_side: where shorter prompts are padded.
        norms_folded: norm weights were moved into the matrices that read them, so that the norms have none.
        centred_writing_weights: each matrix that writes to the residual stream has mean zero over d_model.
        centred_unembed: the unembedding has mean zero over the vocabulary; logits are shifted, probabilities are not.
        value_biases_folded: value biases were moved into the output bias of attention.
    """

    bos: Flag = "unknown"
    padding_side: Literal["left", "right", "none", "unknown"] = "unknown"
    norms_folded: Flag = False
    centred_writing_weights: Flag = False
    centred_unembed: Flag = False
    value_biases_folded: Flag = False


@dataclass(frozen=True, eq=False)
class Opened:
    """One model of one step, in memory.

    Attributes:
        decoder: in float32, with every value that the file holds; float64 is rounded.
        kind: what was found on disk.
        dtype: of the weights on disk, such as "bfloat16"; the one that most values have.
        tokenizer_path: folder that holds tokenizer.json, None where there is none.
        steps: every step that can be opened at the same path; empty for a single model.
        step: the one that was opened, None where it is not known.
        fingerprint: sha256 of a checkpoint's manifest for our own runs, else over configuration and weight files.
        name: of the run, folder or file.
        path: the folder or file that was read.
        drift: how far float32 is from the file's own format on random tokens; None where that has 32 bits or more.
    """

    decoder: "Decoder"
    kind: Kind
    dtype: str
    processing: Processing
    tokenizer_path: Path | None
    steps: tuple[int, ...]
    step: int | None
    fingerprint: str
    name: str
    path: Path
    drift: "Drift | None" = None
