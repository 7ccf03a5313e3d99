"""Names of nodes and receivers, taken apart without torch, so that drawings can read them too."""


def node_of(receiver: str) -> str:
    """The node that a receiver belongs to: `L1.H0` for `L1.H0.q`, `L1.KV0` for `L1.KV0.k`, `logits` for itself."""
    return receiver.rsplit(".", 1)[0] if receiver.endswith((".q", ".k", ".v")) else receiver
