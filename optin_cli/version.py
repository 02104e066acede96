"""The version of the package, which artifacts record."""

__version__ = "0.1.0"
