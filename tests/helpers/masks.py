"""Masks that a person wrote."""

import optin_cli
from optin_cli.artifacts.mask import Budget, GroupMask, Mask
from optin_cli.model.tokens import tokens_of


def make_mask(checkpoint, kept=None, *, seq_len=None, tokens=False, options=None):
    """All units of the groups that are not named in `kept`; groups of tokens too if asked for.

    Groups of other kinds, such as whole blocks, are in it if they are named.
    """
    structure, kept = checkpoint.structure, dict(kept or {})
    units = {group.name: group.units for group in structure.groups}
    if tokens:
        units |= tokens_of(structure).units
    units |= {name: structure.units[name] for name in kept if name in structure.units}
    assert kept.keys() <= units.keys()
    return Mask(
        optin_version=optin_cli.__version__,
        options=options or {},
        inputs={"checkpoint": checkpoint.source},
        workload=checkpoint.input.workload(checkpoint.input.length(seq_len)),
        budget=Budget(asked={}, reached={}),
        importance_lost=None,
        groups={name: GroupMask(units=n, kept=list(kept.get(name, range(n)))) for name, n in units.items()},
    )
