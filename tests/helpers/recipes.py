"""Calibration batches and settings of recipes."""

import torch
from helpers.models import make_inputs, save_checkpoint

from optin_cli.artifacts.base import Source
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.data.batch import Batch
from optin_cli.model.costs import measure_costs
from optin_cli.options.scoring import ScoreOptions
from optin_cli.recipes.recipe import Setting
from optin_cli.scoring.calibration import Calibration
from optin_cli.searching.costs import Costs

OPTIONS = ScoreOptions(probes=1, exact_samples=4, rows=32)


def tiny_checkpoint(tmp_path_factory, family="bert", **options):
    folder = tmp_path_factory.mktemp("recipes") / family
    return load_checkpoint(save_checkpoint(folder, family, **({"num_labels": 2} | options)), device="cpu")


def batches(count=4, rows=6, labelled=True, labels=None):
    made = []
    for number in range(count):
        keys = tuple(f"{number * rows + row:08x}.{number}" for row in range(rows))
        values = torch.arange(rows) % 2 if labels is None else labels
        made.append(Batch(make_inputs(rows, 9, seed=number, padding=2), values if labelled else None, keys))
    return made


def setting_of(checkpoint, *, labelled=True, **options):
    data = batches(labelled=labelled, **options)
    calibration = Calibration(Source(name="data", sha256="a" * 64), data, data[:1])
    inputs = checkpoint.input.example(checkpoint.input.workload(16))
    totals, groups = measure_costs(checkpoint.model, checkpoint.structure, inputs, checkpoint.weight_bytes)
    return Setting(checkpoint, calibration, Costs(groups, totals), OPTIONS, seq_len=16)
