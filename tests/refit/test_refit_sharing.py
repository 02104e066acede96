"""Processes that share the batches of a refit end in the bits of one."""

import copy

import pytest
import torch
from helpers.models import batch_of, build, random_kept, structure_of
from helpers.refits import image_batch
from helpers.sharing import in_processes

from optin_cli.errors import UsageError
from optin_cli.model.cut import PrunedModel, cut
from optin_cli.processes.processes import ALONE, Processes
from optin_cli.refit.refit import BATCH_NORM, refit_model


def case(family):
    if family == "bert":
        original = build("bert", "classes")
        return original, structure_of(original, "classes"), [batch_of(rows=2 + i, seed=i) for i in range(9)]
    original = build(family)
    return original, structure_of(original), [image_batch(original, seed) for seed in range(3)]


def refitted(parts, processes):
    original, structure, batches = parts
    model, kept = copy.deepcopy(original), random_kept(structure, 1)
    cut(model, structure, kept)
    report = refit_model(PrunedModel(original, model, structure, kept), batches, processes=processes)
    return {name: each.model_dump() for name, each in report.items()}, model.state_dict()


@pytest.mark.parametrize(
    ("family", "count"),
    [("bert", 2), ("bert", 3), ("timm-resnet", 2), ("timm-resnet", 4)],
    ids=str,
)
def test_any_number_of_processes_ends_in_the_same_bits(family, count, tmp_path):
    """Also where there are fewer batches than processes."""
    parts = case(family)
    report, state = refitted(parts, ALONE)
    assert any(each["kept"] for each in report.values()) and (BATCH_NORM in report) == (family != "bert")
    for found, other in in_processes(count, lambda processes: refitted(parts, processes), tmp_path):
        assert found == report and other.keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in other.items())


def test_too_many_processes_are_refused():
    with pytest.raises(UsageError, match="shared by 9"):
        refitted(case("bert"), Processes(count=9))
