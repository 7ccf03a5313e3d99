"""Edge attribution patching: one gradient at the clean run."""

from circuits.attribution import eap
from circuits.search._gradient import GradientMethod

METHOD = GradientMethod(
    calls={"EAP": lambda model, *given, **options: eap(model, *given, **options)}, forwards=10, name="EAP"
)
