"""Batches and parts of them."""

import torch
from helpers.models import make_batch


def test_parts_hold_every_sample_once():
    batch = make_batch(7, 9, padding=4)
    parts = [*batch.parts(3)]
    assert [part.size for part in parts] == [3, 3, 1]
    assert sum((part.keys for part in parts), ()) == batch.keys
    for name, tensor in batch.inputs.items():
        assert torch.equal(torch.cat([part.inputs[name] for part in parts]), tensor)


def test_some_samples_of_a_batch():
    batch = make_batch(5, 9, padding=4)
    taken = torch.tensor([True, False, True, True, False])
    some = batch.where(taken)
    assert some.keys == tuple(batch.keys[row] for row in (0, 2, 3)) and some.labels is None
    for name, tensor in batch.inputs.items():
        assert torch.equal(some.inputs[name], tensor[taken])
    assert batch.where(torch.zeros(5, dtype=torch.bool)).size == 0
