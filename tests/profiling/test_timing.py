"""Timing of forward passes: interleaved, in evaluation mode, refused out of range."""

import pytest
import torch

from optin_cli.artifacts.base import Workload
from optin_cli.errors import UsageError
from optin_cli.profiling.devices import describe_device
from optin_cli.profiling.timing import forward_latency, measure_latency


def test_latency_interleaves_the_callables():
    calls = []
    seconds = measure_latency([lambda: calls.append("a"), lambda: calls.append("b")], runs=3, warmup=1)
    assert calls == ["a", "b"] * 4
    assert [len(s) for s in seconds] == [3, 3]
    assert all(x >= 0 for s in seconds for x in s)


@pytest.mark.parametrize(("runs", "warmup"), [(0, 1), (1, -1)])
def test_latency_refuses_run_counts_out_of_range(runs, warmup):
    with pytest.raises(UsageError):
        measure_latency([lambda: None], runs=runs, warmup=warmup)


class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = torch.nn.Dropout().eval()
        self.seen = []

    def forward(self, input_ids, attention_mask):
        self.seen.append((self.training, torch.is_inference_mode_enabled()))
        return input_ids * attention_mask


def test_forward_latency_measures_in_evaluation_mode_and_restores_it():
    toy = Toy()
    ones = torch.ones(2, 3, dtype=torch.long)
    inputs = {"input_ids": ones, "attention_mask": ones}
    results = forward_latency([toy, toy], [inputs] * 2, Workload(batch_size=2, seq_len=3), runs=2, warmup=0)
    assert toy.seen == [(False, True)] * 4
    assert (toy.training, toy.frozen.training) == (True, False)
    for latency in results:
        assert (latency.batch_size, latency.seq_len, latency.runs) == (2, 3, 2)
        assert latency.device == describe_device(torch.device("cpu"))
        assert latency.threads == torch.get_num_threads()
        assert latency.samples_per_second == pytest.approx(2000 / latency.median_ms)
