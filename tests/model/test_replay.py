"""Forward passes that start behind known blocks give what whole passes give."""

import copy
from pathlib import Path

import pytest
import torch
from helpers.models import batch_of, build, make_pixels, random_kept, structure_of
from helpers.tokens import tokens_kept

from optin_cli.data.batch import Batch
from optin_cli.model.cut import PrunedModel, cut
from optin_cli.model.forward import call_model, observe
from optin_cli.model.masking import masked
from optin_cli.model.replay import Prefixes, captured, replayed
from optin_cli.refit import refit

LANGUAGE = ["bert", "albert", "distilbert"]


@pytest.mark.parametrize("family", LANGUAGE)
def test_passes_behind_known_blocks_give_the_same_and_leave_those_out(family):
    model = build(family)
    structure = structure_of(model)
    batches = [batch_of(3, seed=seed) for seed in range(2)]
    order = [*dict.fromkeys(group.block for group in structure.groups)]
    ran = set()
    for group in structure.groups:
        model.get_submodule(group.consumer).register_forward_hook(lambda *_, name=group.name: ran.add(name))
    with Prefixes(model, structure, batches) as known, torch.no_grad():
        for group in structure.groups:
            known.advance(group)
            later = order[order.index(group.block) :]
            for number, batch in enumerate(batches):
                ran.clear()
                with known.skipping(number):
                    mine = call_model(model, batch.inputs)
                assert ran == {each.name for each in structure.groups if each.block in later}
                theirs = call_model(model, batch.inputs)
                assert mine.keys() == theirs.keys() and torch.equal(mine["logits"], theirs["logits"])


@pytest.mark.parametrize("family", LANGUAGE)
def test_refit_behind_known_blocks_gives_the_same(family, monkeypatch):
    original = build(family)
    structure = structure_of(original)
    kept = random_kept(structure)
    models = []
    for skip in (True, False):
        model = copy.deepcopy(original)
        cut(model, structure, kept)
        if not skip:
            monkeypatch.setattr(Prefixes, "advance", lambda *_: None)
        refit.refit_model(PrunedModel(original, model, structure, kept), [batch_of(16)])
        models.append(model.state_dict())
    for name, tensor in models[0].items():
        torch.testing.assert_close(tensor, models[1][name])


def test_of_a_chain_of_blocks_the_last_output_is_kept():
    model = build("bert")
    structure = structure_of(model)
    batches = [batch_of(3, seed=seed) for seed in range(2)]
    with Prefixes(model, structure, batches, chain=True) as known, torch.no_grad():
        for group in structure.groups:
            known.advance(group)
            kept = [path.name for path in sorted(Path(known._scratch.name).iterdir())]
            depth = int(group.block.rpartition(".")[2])
            assert kept == ([f"{number}.{depth - 1}" for number in range(2)] if depth else [])
            for number, batch in enumerate(batches):
                with known.skipping(number):
                    mine = call_model(model, batch.inputs)["logits"]
                assert torch.equal(mine, call_model(model, batch.inputs)["logits"])


@pytest.mark.parametrize("family", ["vit", "timm-dinov2"])
def test_merging_behind_replayed_blocks_is_that_of_the_whole_pass(image_checkpoint, family):
    """Scoring replays the blocks before a merge; attention behind it weighs tokens by size all the same."""
    checkpoint = image_checkpoint(family)
    model, structure = checkpoint.model, checkpoint.structure
    batch = Batch(make_pixels(model, 2), None, ("a", "b"))
    with captured(model, structure) as calls:
        observe(model, structure, batch)
    kept = tokens_kept(checkpoint, 4)
    with masked(model, structure, kept):
        expected = observe(model, structure, batch)
    with replayed(model, structure, [calls[0][1]]), masked(model, structure, kept):
        found = observe(model, structure, batch)
    for mine, theirs in zip([*found.features, *found.outputs], [*expected.features, *expected.outputs], strict=True):
        torch.testing.assert_close(mine, theirs)
