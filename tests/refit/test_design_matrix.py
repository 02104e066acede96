"""What a consumer multiplies, as rows and columns, and consumers that cannot be solved."""

import copy

import pytest
import torch
from torch import nn

from optin_cli.refit import design_matrix as consumers


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 1, "stride": 2, "bias": False},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "padding": (0, 1), "stride": (2, 1), "bias": False},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
    ],
)
@pytest.mark.parametrize("positions", [4, 512])
def test_patches_are_what_a_convolution_multiplies(options, positions, monkeypatch):
    monkeypatch.setattr(consumers, "POSITIONS", positions)
    conv = nn.Conv2d(3, 5, **options)
    x = torch.randn(2, 3, 9, 8)
    out = consumers.output_rows(conv(x), 1, 2)
    chosen = consumers.choose_positions(conv, ("a", "b"), out.shape[1])
    rows = consumers.input_rows(conv, x, 2, chosen)
    torch.testing.assert_close(rows @ consumers.weight_matrix(conv).float(), consumers.take(out, chosen))


def test_positions_depend_on_the_sample_alone():
    conv = nn.Conv2d(3, 5, 1)
    both, swapped = (consumers.choose_positions(conv, keys, 1000) for keys in (("a", "b"), ("b", "a")))
    assert torch.equal(both, swapped.flip(0)) and both.shape == (2, 512) and (both.diff(dim=1) > 0).all()
    assert not torch.equal(both[0], both[1])


def test_solutions_come_back_as_weights():
    for module in (nn.Conv2d(3, 5, (3, 2)), nn.Conv2d(3, 5, 1, bias=False), nn.Linear(4, 6)):
        state = copy.deepcopy(module.state_dict())
        matrix = consumers.weight_matrix(module)
        consumers.set_weight_matrix(module, matrix * 2)
        assert all(torch.allclose(tensor, 2 * state[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "grouped"),
        (nn.Conv2d(4, 4, 3, padding="same"), "padded"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padded"),
        (nn.Conv1d(4, 4, 3), "Conv1d"),
        (nn.Linear(consumers.WIDEST + 1, 1), "columns"),
        (nn.Conv2d(4, 4, 3), None),
        (nn.Linear(4, 4), None),
    ],
)
def test_consumers_that_cannot_be_solved_say_why(module, reason):
    found = consumers.why_not(module)
    assert (found is None) == (reason is None) and (reason is None or reason in found)
