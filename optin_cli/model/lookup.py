"""Resolve dotted paths inside a model."""

import torch
from torch import nn


def module_at(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, None where there is none."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def attribute_at(model: nn.Module, path: str) -> object:
    """The attribute at a path, such as one of a module's config; None where there is none."""
    found: object = model
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def tensor_at(model: nn.Module, path: str) -> torch.Tensor:
    """The parameter or buffer at a full path."""
    tensor = attribute_at(model, path)
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{path} is not a tensor")
    return tensor


def number_at(model: nn.Module, value: int | str, owner: str, problems: list[str]) -> int:
    """A positive number, or the one that the attribute at a path holds; 0, and a problem of `owner`, for another."""
    found = value if isinstance(value, int) else attribute_at(model, value)
    if isinstance(found, int) and found >= 1:
        return found
    where = f"attribute {value} is" if isinstance(value, str) else "a size is"
    problems.append(f"{owner}: {where} {found!r}, expected a positive integer")
    return 0
