"""How exact patches are computed as differences from one base run; the public door is circuits/patching.py."""
