"""What a GPU may do while numbers are made that artifacts hold."""

import pytest
import torch
from torch.backends import cudnn

from optin_cli.model.arithmetic import reproducible


def settings():
    return (
        cudnn.deterministic,
        cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


@pytest.mark.parametrize("gpu", [True, False])
def test_the_settings_of_the_caller_return(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    before = settings()
    with pytest.raises(KeyError), reproducible():
        assert settings() == ((True, False, True, True) if gpu else before)
        with reproducible():
            pass
        assert settings() == ((True, False, True, True) if gpu else before)
        raise KeyError
    assert settings() == before


def test_functions_compute_so_as_a_whole(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert reproducible()(settings)() == (True, False, True, True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_convolutions_on_a_gpu_keep_all_digits():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4, 64, 32, 32, generator=generator), torch.randn(64, 64, 3, 3, generator=generator)
    exact = torch.nn.functional.conv2d(x.double(), weight.double())
    with reproducible():
        found = torch.nn.functional.conv2d(x.cuda(), weight.cuda())
    assert float((found.cpu() - exact).abs().max() / exact.abs().max()) < 1e-5
