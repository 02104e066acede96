"""Sums over batches: means, standard errors, and state that is none."""

import math

import pytest
import torch

from optin_cli.errors import ArtifactError
from optin_cli.scoring.accumulate import Accumulator


def test_accumulator_gives_means_and_standard_errors(tmp_path):
    values = torch.rand(7, 3, dtype=torch.float64)
    totals = Accumulator()
    for part in values.split([3, 4]):
        totals.add({"a": part})
    totals.add({"b": values[:1]})
    torch.testing.assert_close(totals.mean("a"), values.mean(dim=0))
    torch.testing.assert_close(totals.standard_error("a"), values.std(dim=0) / math.sqrt(7))
    assert totals.standard_error("b").tolist() == [0, 0, 0]
    totals.save(tmp_path / "state", "print")
    again = Accumulator.load(tmp_path / "state", "print")
    assert (again.done, again.counts) == (3, {"a": 7, "b": 1})
    for name in "ab":
        assert torch.equal(again.sums[name], totals.sums[name])
        assert torch.equal(again.squares[name], totals.squares[name])


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_a_file_that_is_no_state_is_refused(tmp_path, content):
    path = tmp_path / "state"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match="not the state of an interrupted run"):
        Accumulator.load(path, "print")


def spoiled(tmp_path, change):
    totals = Accumulator()
    totals.add({"a": torch.rand(4, 3)})
    change(totals)
    totals.save(tmp_path / "state", "print")
    return tmp_path / "state"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.sums.pop("a"), "of different groups"),
        (lambda state: state.squares.pop("a"), "of different groups"),
        (lambda state: state.counts.update(a="4"), "the count of a is '4'"),
        (lambda state: state.counts.update(a=10**30), "the count of a is 1000"),
        (lambda state: state.counts.update(a=-1), "the count of a is -1"),
        (lambda state: state.squares["a"].__setitem__(0, math.nan), "the sums of a are not finite"),
        (lambda state: state.sums.update(a=torch.zeros(2, dtype=torch.float64)), r"of shape \(2,\)"),
        (lambda state: setattr(state, "done", -1), "how far it came"),
        (lambda state: setattr(state, "extra", {"x": torch.zeros(1)}), "extra.x is of no use"),
    ],
)
def test_a_state_that_no_run_leaves_is_refused(tmp_path, change, words):
    with pytest.raises(ArtifactError, match=f"not the state of an interrupted run: .*{words}"):
        Accumulator.load(spoiled(tmp_path, change), "print")
