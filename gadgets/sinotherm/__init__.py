"""Real-time reconstruction of radial MRI, and thermometry from it."""

from importlib.metadata import version

__version__ = version("sinotherm")
__all__ = ["__version__"]
