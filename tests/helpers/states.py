"""State dicts, written as every kind of weights file."""

import torch
from safetensors.torch import save_file

STATE = {"a.weight": torch.tensor([[1.0, 2.0]]), "a.bias": torch.tensor([3.0]), "step": torch.tensor(7)}


def write_state(path, state=None):
    state = STATE if state is None else state
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path
