"""A kind of units is one class: masking, cutting and plans of generic code follow it."""

import contextlib
from dataclasses import dataclass, replace

import torch
from helpers.models import build, clone, make_inputs, structure_of

from optin_cli.model.cut import cut
from optin_cli.model.forward import hooks
from optin_cli.model.masking import masked
from optin_cli.model.plan import Plan
from optin_cli.model.structure import Block
from optin_cli.model.units import UnitKind


@dataclass(frozen=True)
class Layers(UnitKind):
    """Whole blocks as units, as a further kind would have them: what a removed block gets, it passes on."""

    blocks: tuple[Block, ...]

    @property
    def units(self):
        return {"encoder.layer": len(self.blocks)}

    @contextlib.contextmanager
    def masked(self, model, kept):
        with hooks() as hook:
            for number, block in enumerate(self.blocks):
                if number not in kept.get("encoder.layer", range(len(self.blocks))):
                    hook.after(model.get_submodule(block.path), lambda _module, inputs, _output: inputs[0])
            yield

    def cut(self, _model, _kept, root):
        return Plan(root=root), {}


def test_another_kind_of_units_is_one_class():
    model = build("bert")
    structure = structure_of(model)
    more = replace(structure, kinds=(*structure.kinds, Layers(structure.blocks)))
    inputs = make_inputs()
    assert more.units == {**structure.units, "encoder.layer": 3} and more.groups == structure.groups
    shorter = clone(model)
    del shorter.bert.encoder.layer[1]
    kept = {"encoder.layer": [0, 2], "encoder.0.head": [1, 2]}
    with masked(model, more, kept):
        mine = model(**inputs).logits
    with masked(shorter, structure_of(shorter), {"encoder.0.head": [1, 2]}):
        torch.testing.assert_close(mine, shorter(**inputs).logits)
    assert not torch.allclose(mine, model(**inputs).logits)
    assert cut(clone(model), more, kept) == cut(clone(model), structure, kept)
