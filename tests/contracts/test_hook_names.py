"""Hook points have the canonical names, and no code asks for one that the model does not have."""

import ast
import re

import pytest

from interp.config import ModelConfig
from interp.model import Transformer

BLOCK = (
    "hook_resid_pre",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_attn_scores",
    "attn.hook_pattern",
    "attn.hook_z",
    "hook_attn_out",
    "hook_resid_mid",
    "mlp.hook_pre",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
)
NAMED = re.compile(r"(?<![\w.])(?:(?:attn|mlp|ln\w+)\.)?hook_[a-z]\w*")
NOT_POINTS = {"hook_dict", "hook_points", "hook_name", "hook_names"}  # words about hooks, not names of activations


@pytest.fixture(scope="module")
def model():
    """Two layers with everything that brings hook points."""
    return Transformer(ModelConfig(n_layers=2, d_vocab=7, n_ctx=5, d_model=8, embed_norm=True), seed=0)


def test_every_block_has_the_canonical_hook_points(model):
    wanted = {"hook_embed", "hook_pos_embed", "ln_final.hook_scale", "ln_final.hook_normalized"}
    wanted |= {f"blocks.{layer}.{name}" for layer in range(2) for name in BLOCK}
    wanted |= {f"blocks.{layer}.{norm}.hook_normalized" for layer in range(2) for norm in ("ln1", "ln2")}
    assert not wanted - set(model.hook_dict)


def test_code_asks_only_for_hook_points_that_exist(model, sources):
    known = {name.rsplit(".", 1)[-1] for name in model.hook_dict} | NOT_POINTS
    wrong = [
        f"{path}:{node.lineno} {found}"
        for path, _, tree in sources
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for found in NAMED.findall(node.value)
        if found.rsplit(".", 1)[-1] not in known
    ]
    assert not wrong, wrong
