"""Real-time reconstruction of radial MRI, and thermometry from it."""

import os
from importlib.metadata import version

# OpenMP reads this when it is loaded, with PyTorch or finufft. Its threads otherwise spin while they wait:
# beside other work 5 ms become 90 ms, and a network's operators lose their cores to its idle convolutions.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = version("sinotherm")
__all__ = ["__version__"]
