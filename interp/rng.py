"""Independent random streams: one explicit generator per seed and label."""

import hashlib

from torch import Generator

from interp.config import canonical_json


def stream_seed(seed: int, *labels: str | int) -> int:
    """The first 8 bytes of sha256 over the canonical JSON of (seed, labels), as an unsigned integer.

    The text "1" and the number 1 are different labels, and ("ab", "c") differs from ("a", "bc").
    """
    digest = hashlib.sha256(canonical_json([seed, *labels])).digest()
    return int.from_bytes(digest[:8], "big")


def generator(seed: int, *labels: str | int) -> Generator:
    """A CPU generator that depends on the seed and the labels only, whatever else was drawn before.

    Args:
        seed: the seed of the run or of the analysis.
        labels: what the numbers are for, such as ("batches",) or ("null", 17); other labels give another stream.
    """
    return Generator(device="cpu").manual_seed(stream_seed(seed, *labels))
