"""Sums over batches: means, standard errors, and state that is none."""

import math

import pytest
import torch
from helpers.sharing import in_processes

from optin_cli.artifacts.base import Workload
from optin_cli.errors import ArtifactError, UsageError
from optin_cli.processes.processes import ALONE, Processes
from optin_cli.progress import SILENT
from optin_cli.scoring.accumulate import Accumulator, Job, RunIdentity, SavedState, run_jobs


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


def test_own_sums_that_are_no_numbers_are_refused(tmp_path):
    own = {"square": torch.zeros(2)}
    totals = Accumulator(own)
    totals.add({"a": torch.rand(4, 3)})
    own["square"][0] = math.nan
    totals.save(tmp_path / "state", "print")
    with pytest.raises(ArtifactError, match=r"extra\.square is not finite"):
        Accumulator.load(tmp_path / "state", "print", {"square": torch.zeros(2)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.sums.pop("a"), "of different groups"),
        (lambda state: state.squares.pop("a"), "of different groups"),
        (lambda state: state.counts.update(a="4"), "the count of a is '4'"),
        (lambda state: state.counts.update(a=10**30), "the count of a is 1000"),
        (lambda state: state.counts.update(a=-1), "the count of a is -1"),
        (lambda state: state.squares["a"].__setitem__(0, math.nan), "square.a is not finite"),
        (lambda state: state.sums.update(a=torch.zeros(2, dtype=torch.float64)), r"of shape \(2,\)"),
        (lambda state: setattr(state, "done", -1), "how far it came"),
        (lambda state: setattr(state, "extra", {"x": torch.zeros(1)}), "extra.x is of no use"),
    ],
)
def test_a_state_that_no_run_leaves_is_refused(tmp_path, change, words):
    with pytest.raises(ArtifactError, match=f"not the state of an interrupted run: .*{words}"):
        Accumulator.load(spoiled(tmp_path, change), "print")


# Whole runs


def identity(structure):
    return RunIdentity("units", structure, {}, {}, Workload(seq_len=4), ())


def summed(bert, processes=ALONE, state=None, jobs=19, stop=None):
    """The totals of a run whose sums depend on the order of additions."""
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(jobs, 4, 3, generator=draw) * 10 ** torch.randn(jobs, 1, 1, generator=draw)
    extra = {"square": torch.zeros(3, 3, dtype=torch.float64), "counts": torch.zeros(1, dtype=torch.int64)}

    def run(number):
        if number == stop:
            raise KeyboardInterrupt
        extra["square"].add_(values[number].T @ values[number])
        extra["counts"].add_(4)
        return {"a": values[number]} if number < 12 else {"a": values[number], "b": values[number, :1]}

    work = [Job("test", 1 + number % 3, lambda number=number: run(number)) for number in range(jobs)]
    saved = SavedState() if state is None else SavedState(state, resume=state.exists())
    totals = run_jobs(work, identity(bert.structure), saved, SILENT, extra, processes)
    return [*totals.sums.values(), *totals.squares.values(), *extra.values(), totals.done, totals.counts]


def alike(found, other):
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(found, other, strict=True))


@pytest.mark.parametrize("count", [2, 3])
def test_processes_that_share_a_run_all_have_the_sums_of_one(bert, tmp_path, count):
    whole = summed(bert)
    for each in in_processes(count, lambda processes: summed(bert, processes), tmp_path):
        assert alike(each, whole)


def test_a_run_of_one_job_can_be_shared(bert, tmp_path):
    whole = summed(bert, jobs=1)
    assert all(alike(each, whole) for each in in_processes(2, lambda p: summed(bert, p, jobs=1), tmp_path))


@pytest.mark.parametrize("stop", [1, 2, 9, 18])
def test_processes_resume_what_one_left_and_the_other_way_round(bert, tmp_path, stop):
    whole, state = summed(bert), tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        summed(bert, state=state, stop=stop)
    kept = state.read_bytes()
    assert alike(summed(bert, state=state), whole)
    state.write_bytes(kept)
    for each in in_processes(2, lambda processes: summed(bert, processes, state), tmp_path):
        assert alike(each, whole)
    assert alike(summed(bert, state=state, stop=0), whole), "the state of a finished run has everything"


def test_more_processes_than_portions_are_refused(bert):
    with pytest.raises(UsageError, match="divided into 8 portions"):
        summed(bert, Processes(count=9))


@pytest.mark.parametrize("change", [lambda s: setattr(s, "done", 1), lambda s: setattr(s, "done", 99)])
def test_a_state_that_ends_within_a_portion_is_refused(bert, tmp_path, change):
    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        summed(bert, state=state, stop=9)
    print_ = identity(bert.structure).fingerprint()
    extra = {"square": torch.zeros(3, 3, dtype=torch.float64), "counts": torch.zeros(1, dtype=torch.int64)}
    spoilt = Accumulator.load(state, print_, extra, Accumulator({name: t.clone() for name, t in extra.items()}))
    change(spoilt)
    spoilt.save(state, print_)
    with pytest.raises(ArtifactError, match="does not say how far it came"):
        summed(bert, state=state)
