"""Make trained transformers smaller without retraining: the Python API behind the `optin` command."""

__version__ = "0.1.0"
