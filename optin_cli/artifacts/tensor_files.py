"""Headers of safetensors files, read without their tensors. Importing this module does not import torch."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from optin_cli.files import MOST_BYTES, parse_json

MOST_AXES = 64
"""No tensor of a model has more axes, nor does numpy take any."""


def read_tensor_header(path: Path) -> dict[str, Any] | None:
    """The decoded JSON header of a safetensors file; None where it is damaged or too large (OSError as of open)."""
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > MOST_BYTES:
            return None
        try:
            found = parse_json(stream.read(size))
        except ValueError:
            return None
    return found if isinstance(found, dict) else None


def require_few_axes(path: Path) -> None:
    """Refuse tensors of very many axes, over which libraries take minutes or break (SafetensorError, as of them).

    Headers that cannot be read pass, since whoever reads the tensors refuses them.
    """
    for name, entry in (read_tensor_header(path) or {}).items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if isinstance(shape, list) and len(shape) > MOST_AXES:
            raise SafetensorError(f"{name} has {len(shape):,} axes; expected at most {MOST_AXES}")
