"""Importance of whole blocks: what the next blocks do is folded into the consumer before them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import build, make_batch, save_checkpoint, structure_of
from helpers.running import call, write_rows
from helpers.sharing import in_processes

import optin_cli
from optin_cli.artifacts.costs import BlockExchange
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.errors import ArchitectureError, UsageError
from optin_cli.model.depth import depth_of
from optin_cli.model.forward import Trajectory, observe
from optin_cli.options.scoring import ScoreOptions
from optin_cli.scoring.depth import (
    Folding,
    block_importance,
    exchanged,
    last_consumers,
    removal_order,
    root_of,
    standing_for,
    streams,
    without,
)
from optin_cli.searching.limits import Limits

OPTIONS = ScoreOptions(
    samples=24, probes=1, batch_size=4, exact_samples=4, max_length=16, units=("heads", "neurons", "blocks")
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    rows = [{"text": f"{a} {b} {c} good"} for a in "abcdef" for b in "ghij" for c in "kl"]
    return write_rows(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)


def test_folding_is_cross_validated_least_squares():
    """What is linear in x costs nothing; of noise, what new tokens would show."""
    draw = torch.Generator().manual_seed(0)
    x, other = (torch.randn(400, 20, generator=draw, dtype=torch.float64) for _ in range(2))
    map_there, noise = torch.randn(20, 3, generator=draw).double(), torch.randn(400, 3, generator=draw).double()
    ones = x.new_ones(400, 1)
    changes = {"linear": x @ map_there + 2, "noisy": x @ map_there + noise}
    zeros = x.new_zeros(21, 21)
    folding = Folding(zeros, {n: zeros.new_zeros(21, 3) for n in changes}, {n: zeros.new_zeros(1) for n in changes})
    for part in (slice(0, 150), slice(150, 400)):
        folding.add(torch.cat([x, ones], 1)[part], {name: change[part] for name, change in changes.items()})
    assert folding.loss("linear", 1e-9) < 1e-9
    solved = torch.linalg.lstsq(torch.cat([x, ones], 1), changes["noisy"]).solution
    new = torch.cat([other, ones], 1) @ solved - (other @ map_there)
    unseen = float(new.square().sum(dim=1).mean()) + 3.0
    assert folding.loss("noisy", 1e-9) == pytest.approx(unseen, rel=0.1)
    seen = float((torch.cat([x, ones], 1) @ solved - changes["noisy"]).square().sum(dim=1).mean())
    assert folding.loss("noisy", 1e-9) > seen


def test_a_root_gives_its_matrix():
    rows = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrix = rows.T @ rows
    torch.testing.assert_close(root_of(matrix) @ root_of(matrix).T, matrix)


@pytest.mark.parametrize("family", ["bert", "llama", "vit"])
def test_streams_are_what_blocks_add_up(family):
    """Of pre-norm models the sum behind a block's last consumer is what the block puts out."""
    model = build(family, "next" if family == "llama" else "classes")
    structure = structure_of(model, "next" if family == "llama" else "classes")
    if family == "vit":
        from helpers.refits import image_batch

        batch = image_batch(model, rows=2)
    else:
        batch = make_batch(2, 8, padding=3)
    inputs, sums = streams(model, last_consumers(structure, depth_of(structure.kinds)), batch)
    features = observe(model, structure, batch).features
    real = batch.mask_for(features[0])
    for block, found in zip(structure.blocks, features, strict=True):
        group = last_consumers(structure, depth_of(structure.kinds))[block.name]
        assert inputs[block.name].shape == (int(real.sum()), group.width + 1)
        assert (inputs[block.name][:, -1] == 1).all()
        mine = sums[block.name]
        if group.residual_sum is not None:
            mine = model.get_submodule(group.residual_sum)(mine)
        torch.testing.assert_close(mine, found[real])


def test_blocks_go_by_what_their_runs_cost():
    names = list("abcdef")
    single = {"b": 5.0, "c": 1.0, "d": 1.5, "e": 4.0, "f": 9.0}
    losses = {}
    for start in range(5):
        for end in range(start + 1, min(start + 4, 6)):
            run = names[start + 1 : end + 1]
            losses[names[start], names[end]] = sum(single[name] for name in run) * (3.0 if len(run) > 1 else 1.0)
    order, found = removal_order(names, losses)
    assert order[0] == "c" and order[1] == "e", "d would make a run with c, which costs thrice as much"
    assert found[:2].tolist() == [1.0, 5.0]
    assert set(order) == set("bcdef") and len(found) == 5
    # All go: a run of three, and one of two behind it.
    assert found[-1] == pytest.approx(losses["a", "d"] + losses["d", "f"])


def test_a_block_stands_for_those_that_go_behind_it():
    structure = structure_of(build("bert"))
    features = [torch.full((1, 1, 1), float(number)) for number in range(3)]
    found = standing_for(Trajectory(features, []), structure, without(["encoder.1", "encoder.2"]))
    assert [int(f) for f in found.features] == [2, 2, 2]
    found = standing_for(Trajectory(features, []), structure, without(["encoder.1"]))
    assert [int(f) for f in found.features] == [1, 1, 2]


def test_importance_rises_in_the_order_of_removal():
    values = block_importance(np.array([1.0, 3.0, 4.0, 9.0]))
    assert values.shape == (5,) and (np.diff(values) > 0).all()
    assert values[:4].sum() == pytest.approx(9.0)
    exchange = BlockExchange(share=0.8, units_lost=2.0, units_distance=4.0, depths=[1, 3], distances=[3.0, 4.0])
    # Half the distance, times 3 behind the first block and 1 behind the third.
    assert exchanged(np.array([1.0, 3.0, 4.0, 9.0]), exchange) == pytest.approx([1.5, 3.0, 2.0, 4.5])
    assert exchanged(np.array([1.0, 3.0]), None).tolist() == [1.0, 3.0]


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_scores_masks_and_folders(tmp_path, texts, family):
    head = "next" if family == "llama" else "classes"
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "whole", family, head))
    length = OPTIONS.max_length if family == "llama" else None  # of windows, of which refit needs several
    scores = optin_cli.score(checkpoint, str(texts), options=OPTIONS, seq_len=length)
    stack = checkpoint.structure.blocks[0].name.partition(".")[0]
    values = [float(scores.importance[f"{stack}.{number}.block"][0]) for number in range(3)]
    assert values[0] == max(values) and min(values) > 0
    assert scores.header.block_exchange is not None and scores.header.block_exchange.depths == [1, 2]
    again = optin_cli.score(checkpoint, str(texts), options=OPTIONS, seq_len=length)
    assert again.content() == scores.content()
    mask = optin_cli.search(scores, Limits(keep_macs=0.2 if family == "bert" else 0.5))
    manifest = optin_cli.prune(checkpoint, mask, tmp_path / "small", refit=str(texts))
    assert manifest.after.macs / manifest.before.macs == pytest.approx(mask.budget.reached["macs"], rel=1e-6)
    left = sum(bool(mask.groups[f"{stack}.{number}.block"].kept) for number in range(3))
    assert len(load_checkpoint(tmp_path / "small").structure.blocks) == left


def test_what_cannot_be_scored_as_a_whole(tmp_path, texts):
    bert = save_checkpoint(tmp_path / "bert")
    for options, words in (
        (replace(OPTIONS, criterion="magnitude"), "judges single layers"),
        (replace(OPTIONS, units=("heads", "neurons", "tokens", "blocks")), "cannot be"),
        (replace(OPTIONS, units=("blocks",)), "alone were asked for"),
    ):
        with pytest.raises((UsageError, ArchitectureError), match=words):
            optin_cli.score(bert, str(texts), options=options)
    albert = save_checkpoint(tmp_path / "albert", "albert")
    result = call("score", albert, "--calib", texts, "--units", "heads,neurons,blocks", "-o", tmp_path / "s")
    assert result.code == 1 and "No whole block of albert can be removed" in result.err


def test_processes_that_share_batches_score_blocks_alike(tmp_path, texts):
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "whole"))
    alone = optin_cli.score(checkpoint, str(texts), options=OPTIONS)
    assert alone.header.block_exchange is not None

    def shared(processes):
        return optin_cli.score(replace(checkpoint, processes=processes), str(texts), options=OPTIONS).content()

    assert in_processes(2, shared, tmp_path) == [alone.content()] * 2
