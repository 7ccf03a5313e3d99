"""EAP with integrated gradients, of inputs and of activations, both normalised and averaged."""

from circuits.attribution import eap_ig
from circuits.search._gradient import GradientMethod

STEPS = 5
METHOD = GradientMethod(
    calls={
        "inputs": lambda model, *given, **options: eap_ig(model, *given, steps=STEPS, variant="inputs", **options),
        "activations": lambda model, *given, **options: eap_ig(
            model, *given, steps=STEPS, variant="activations", **options
        ),
    },
    forwards=150,
    name=f"EAP-IG, {STEPS} steps",
)
