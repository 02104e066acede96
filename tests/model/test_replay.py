"""Forward passes that start behind known blocks give what whole passes give."""

import copy

import pytest
import torch
from helpers.models import batch_of, build, random_kept, structure_of

from optin_cli.model.cut import PrunedModel, cut
from optin_cli.model.forward import call_model
from optin_cli.model.replay import Prefixes
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
