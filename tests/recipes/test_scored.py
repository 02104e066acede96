"""Wanda: its scores by hand, streamed and resumed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.recipes import batches, setting_of
from helpers.running import Watch

from optin_cli.options.scoring import CRITERIA, ScoreOptions
from optin_cli.scoring.accumulate import SavedState
from optin_cli.scoring.baselines import wanda_batch
from optin_cli.scoring.one_shot import score_checkpoint

OPTIONS = ScoreOptions(probes=1, exact_samples=4, rows=32)


def test_wanda_is_the_squared_norms_by_hand(tiny):
    batch, layer = batches()[0], tiny.model.bert.encoder.layer[1]
    found = wanda_batch(tiny.model, tiny.structure, tiny.structure.groups, batch)
    for kind, consumer, block in [("head", layer.attention.output.dense, 8), ("neuron", layer.output.dense, 1)]:
        seen = []
        handle = consumer.register_forward_pre_hook(lambda _m, inputs, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            tiny.model(**batch.inputs)
        handle.remove()
        x = seen[0].double()
        for row in range(batch.size):
            norms = x[row][batch.token_mask[row]].norm(dim=0)
            expected = (consumer.weight.double().abs() * norms).square().sum(dim=0).reshape(-1, block).sum(dim=1)
            torch.testing.assert_close(found[f"encoder.1.{kind}"][row], expected, rtol=1e-5, atol=1e-8)


def test_wanda_streams_and_resumes(tiny, tmp_path):
    calibration = setting_of(tiny, labelled=False).calibration
    options = replace(OPTIONS, criterion="wanda")
    assert not CRITERIA["wanda"].needs_labels
    whole = score_checkpoint(tiny, calibration, options, seq_len=16, state=SavedState(tmp_path / "whole"))

    def stop(done, total, _what):
        if done > total / 2:
            raise KeyboardInterrupt

    half = SavedState(tmp_path / "half", resume=True)
    with pytest.raises(KeyboardInterrupt):
        score_checkpoint(tiny, calibration, options, seq_len=16, state=half, progress=Watch(stop))
    resumed = score_checkpoint(tiny, calibration, options, seq_len=16, state=half)
    for name, values in whole.importance.items():
        assert np.array_equal(values, resumed.importance[name])
    assert {group.estimator for group in whole.header.groups.values()} == {"wanda"}
    assert all((error > 0).any() for error in whole.standard_error.values())
