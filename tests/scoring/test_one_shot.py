"""One-shot scores: padding, interruption, records, every criterion."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.estimators import BOTH, assert_close, exact, sketch
from helpers.models import (
    HEADS,
    build,
    make_batch,
    pick,
    root_of,
    save_checkpoint,
    structure_of,
)
from helpers.running import Watch

from optin_cli.artifacts.base import Source
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.data.batch import Batch
from optin_cli.errors import ArtifactError, CheckpointError, UsageError
from optin_cli.model.head_dims import head_dims_of
from optin_cli.model.lookup import tensor_at
from optin_cli.options.scoring import ScoreOptions
from optin_cli.scoring import moments
from optin_cli.scoring.accumulate import SavedState
from optin_cli.scoring.calibration import Calibration
from optin_cli.scoring.one_shot import only_units, score_checkpoint
from optin_cli.scoring.sketch import Objective

# Sketch


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("estimate", [exact, sketch])
def test_scores_of_a_sample_do_not_depend_on_its_company(estimate, head):
    model = build("roberta", head, num_hidden_layers=2)
    structure, batch = structure_of(model, head), make_batch(rows=3)
    together = estimate(model, structure, batch)
    for rows in ([2], [0, 1], [2, 0, 1]):
        apart = estimate(model, structure, pick(batch, rows))
        assert_close(apart, {name: values[rows] for name, values in together.items()})


@pytest.mark.parametrize("estimate", [exact, sketch])
@pytest.mark.parametrize("head", ["labels", "tokens", "base"])
def test_padding_on_the_left_scores_the_same(estimate, head):
    # DistilBERT adds absolute positions; with them zeroed, a shift of the sequence changes nothing.
    model = build("distilbert", head, n_layers=2)
    tensor_at(model, f"{root_of(model)}.embeddings.position_embeddings.weight".lstrip(".")).zero_()
    structure, right = structure_of(model, head), pick(make_batch(rows=2), [1])
    pad = {name: torch.nn.functional.pad(tensor, (3, 0)) for name, tensor in right.inputs.items()}
    left = Batch(pad, None, right.keys)
    # A classifier over the sequence reads its first position, which is padding now.
    objective = Objective(1.0, 0.0, 1.0) if head == "labels" else BOTH
    assert_close(estimate(model, structure, left, objective), estimate(model, structure, right, objective))


# Whole runs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return load_checkpoint(save_checkpoint(tmp_path_factory.mktemp("tiny") / "model", num_hidden_layers=2))


def calibration(labels=None):
    batches = [make_batch(rows=2, tokens=6, seed=seed, labels=labels) for seed in range(3)]
    batches = [Batch(b.inputs, b.labels, tuple(f"{i}.{k}" for k in b.keys)) for i, b in enumerate(batches)]
    return Calibration(Source(name="data", sha256="a" * 64), batches, batches[:1])


def run(checkpoint, data=None, options=None, **rest):
    options = options or ScoreOptions(estimator="hybrid", probes=2)
    return score_checkpoint(checkpoint, data or calibration(), options, seq_len=16, **rest)


class Interrupt:
    def __init__(self, after):
        self.left = after

    def update(self, done, total, _what):
        assert 0 <= done <= total
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def count(self, samples):
        pass


@pytest.mark.parametrize("after", [0, 1, 2, 4])
def test_resumed_run_ends_in_the_same_bits(checkpoint, tmp_path, after):
    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, state=SavedState(state), progress=Interrupt(after))
    assert state.exists() == (after > 0)
    if after:
        with pytest.raises(ArtifactError, match="other options, data or checkpoint"):
            run(checkpoint, options=ScoreOptions(estimator="hybrid", probes=3), state=SavedState(state, resume=True))
    asked = []
    watch = Watch(lambda _done, _total, what: asked.append(what))
    resumed = run(checkpoint, state=SavedState(state, resume=True), progress=watch)
    assert resumed.content() == run(checkpoint).content()
    assert len(asked) == 3 + 2 + 1 - after
    assert list(tmp_path.iterdir()) == [state]


@pytest.mark.parametrize("criterion", ["trajectory", "slimgpt"])
@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_moments_are_resumed_too(checkpoint, tmp_path, monkeypatch, criterion, after):
    """Whatever the state's size: a large one is not saved at once or after every job, but always after the last."""
    options, state = ScoreOptions(criterion=criterion, probes=1), tmp_path / "state"
    whole = run(checkpoint, options=options).content()
    for small, saved in ((1 << 20, min(after, 3)), (0, 3 if after >= 3 else 0)):
        monkeypatch.setattr("optin_cli.scoring.accumulate.SMALL_STATE", small)
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint, options=options, state=SavedState(state), progress=Interrupt(after))
        asked = []
        watch = Watch(lambda _done, _total, what, asked=asked: asked.append(what))
        resumed = run(checkpoint, options=options, state=SavedState(state, resume=True), progress=watch)
        assert resumed.content() == whole
        assert sum(what in ("obs", "slimgpt") for what in asked) == 3 - saved
        state.unlink()


def test_a_layer_that_cannot_be_solved_again_is_sketched_beside_the_others(checkpoint, monkeypatch):
    options = ScoreOptions(probes=2)
    whole = run(checkpoint, options=options)
    assert {(g.estimator, g.samples) for g in whole.header.groups.values()} == {("obs", 6)}
    odd = checkpoint.structure.group("encoder.0.neuron")
    consumer = checkpoint.model.get_submodule(odd.consumer)
    monkeypatch.setattr(moments, "why_not", lambda module: "odd" * (module is consumer) or None)
    found, alone = (run(checkpoint, options=replace(options, estimator=name)) for name in ("obs", "sketch"))
    for name, group in found.header.groups.items():
        assert group.estimator == ("sketch" if name == odd.name else "obs")
        same = (alone if name == odd.name else whole).importance[name]
        np.testing.assert_allclose(found.importance[name], same, rtol=1e-4)


def alike(data, **changes):
    """Calibration of the same name and hash, in which one thing is another."""
    first = replace(data.batches[0], **changes)
    return replace(data, batches=[first, *data.batches[1:]])


def shorter(tensors):
    return {name: tensor[:, :-1] for name, tensor in tensors.items()}


def fewer_groups(checkpoint):
    return replace(checkpoint, structure=checkpoint.structure.with_groups(checkpoint.structure.groups[:-1]))


OTHER = Source(name="other", sha256="b" * 64)

CHANGES = {
    "seq_len": lambda _run: {"seq_len": 8},
    "options": lambda run: {"options": replace(run["options"], seed=1)},
    "weights": lambda run: {"checkpoint": replace(run["checkpoint"], sha256="b" * 64)},
    "own description": lambda run: {"checkpoint": replace(run["checkpoint"], description=OTHER)},
    "structure": lambda run: {"checkpoint": fewer_groups(run["checkpoint"])},
    "data": lambda run: {"data": replace(run["data"], source=OTHER)},
    "tokenizer": lambda run: {"data": alike(run["data"], keys=("p", "q"))},
    "length of texts": lambda run: {"data": alike(run["data"], inputs=shorter(run["data"].batches[0].inputs))},
    "labels": lambda run: {"data": alike(run["data"], labels=torch.tensor([1, 1]))},
    "exact samples": lambda run: {"data": replace(run["data"], exact_batches=run["data"].batches[1:2])},
}
"""What another run has that is otherwise as `run`."""


@pytest.mark.parametrize("name", [*CHANGES, "version"])
def test_a_state_is_taken_up_by_the_same_run_alone(checkpoint, tmp_path, monkeypatch, name):
    """Whatever decides scores is part of the fingerprint: a run in which any of it differs refuses the state."""
    state = tmp_path / "state"

    def score(*, checkpoint, data, options, resume=False, **rest):
        return score_checkpoint(checkpoint, data, options, state=SavedState(state, resume), **rest)

    options = ScoreOptions(estimator="hybrid", probes=1)
    arguments = {"checkpoint": checkpoint, "data": calibration(), "options": options, "seq_len": 16}
    with pytest.raises(KeyboardInterrupt):
        score(**arguments, progress=Interrupt(2))
    before = state.read_bytes()
    with monkeypatch.context() as patch:
        if name == "version":
            patch.setattr("optin_cli.scoring.accumulate.__version__", "0")
        with pytest.raises(ArtifactError, match=r"other options, data or checkpoint, or by another version of optin"):
            score(**arguments | CHANGES[name](arguments) if name in CHANGES else arguments, resume=True)
    assert state.read_bytes() == before
    assert score(**arguments, resume=True).content() == score(**arguments).content()


def test_scores_say_how_each_group_was_estimated(checkpoint):
    scores = run(checkpoint)
    groups = scores.header.groups
    assert {g.estimator for n, g in groups.items() if g.kind == "head"} == {"exact"}
    assert {(g.estimator, g.samples) for n, g in groups.items() if g.kind == "neuron"} == {("sketch", 6)}
    assert groups["encoder.1.head"].samples == 2
    assert set(scores.standard_error) == set(scores.importance) == set(groups)
    assert all((e >= 0).all() and e.max() < scores.importance[n].max() * 3 for n, e in scores.standard_error.items())


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (None, ["head"]),
        (("heads",), ["head"]),
        (("neurons",), ["neuron"]),
        (("heads", "neurons"), ["head", "neuron"]),
        (("head", "heads", "neuron"), ["head", "neuron"]),
        ((), []),
    ],
)
def test_kinds_to_score_exactly_go_by_the_words_of_units_too(checkpoint, words, kinds):
    scores = run(checkpoint, options=ScoreOptions(estimator="hybrid", probes=1, exact_kinds=words))
    groups = scores.header.groups.values()
    assert {group.kind for group in groups if group.estimator == "exact"} == set(kinds)
    assert scores.header.options["exact_kinds"] == kinds


@pytest.mark.parametrize("kinds", [("channels",), ("heads", "channel")])
def test_kinds_to_score_exactly_that_a_model_lacks(checkpoint, kinds):
    """Named, they are refused before any work; heads, the default, may be missing."""
    options = ScoreOptions(estimator="hybrid", probes=1)
    with pytest.raises(UsageError, match="no units of kind 'channel' to score exactly; what is scored is head, neuron"):
        only_units(checkpoint.structure, replace(options, exact_kinds=kinds))
    neurons = checkpoint.structure.with_groups(g for g in checkpoint.structure.groups if g.kind == "neuron")
    found = run(replace(checkpoint, structure=only_units(neurons, options)), options=options)
    assert {group.estimator for group in found.header.groups.values()} == {"sketch"}


@pytest.mark.parametrize("criterion", ["trajectory", "manifold", "output", "slimgpt", "fisher", "magnitude", "random"])
def test_every_criterion_scores_every_unit(checkpoint, criterion):
    needs_data = criterion not in ("magnitude", "random")
    options = ScoreOptions(criterion=criterion, probes=1)
    data = calibration(torch.tensor([0, 2])) if needs_data else None
    scores = score_checkpoint(checkpoint, data, options, seq_len=16)
    names = {g.name for g in checkpoint.structure.groups}
    if criterion in ("trajectory", "manifold", "output"):
        names |= head_dims_of(checkpoint.structure.kinds).units.keys()
    assert set(scores.importance) == names
    assert all((values >= 0).all() and values.max() > 0 for values in scores.importance.values())
    assert bool(scores.standard_error) == needs_data


def test_the_terms_of_the_trajectory_add_up(checkpoint):
    options = {"estimator": "exact", "output_weight": 1.0}
    parts = [run(checkpoint, options=ScoreOptions(criterion=c, **options)) for c in ("manifold", "output")]
    both = run(checkpoint, options=ScoreOptions(**options | {"output_weight": 3.0}))
    for name, values in both.importance.items():
        expected = parts[0].importance[name] + 3.0 * parts[1].importance[name]
        assert values == pytest.approx(expected, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("estimate", [exact, sketch])
@pytest.mark.parametrize("head", HEADS)
def test_an_outputs_weight_multiplies_lambda(head, estimate):
    model = build("bert", head, num_hidden_layers=1)
    structure, batch = structure_of(model, head), make_batch(rows=2, tokens=6, padding=2)
    alike = replace(structure, outputs=tuple(rule.model_copy(update={"weight": 1.0}) for rule in structure.outputs))
    less = replace(structure, outputs=tuple(rule.model_copy(update={"weight": 0.25}) for rule in structure.outputs))
    assert_close(estimate(model, less, batch), estimate(model, alike, batch, Objective(1.0, 0.25, 1.0)))


def test_scores_that_overflow_are_refused(tmp_path):
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "model", num_hidden_layers=1))
    checkpoint.model.classifier.weight.fill_(3e38)
    with pytest.raises(CheckpointError, match="not finite"):
        run(checkpoint, options=ScoreOptions(criterion="output", estimator="exact"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_are_scored_in_single_precision(tmp_path, dtype):
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "model", dtype=dtype, num_hidden_layers=1))
    assert checkpoint.dtype == dtype
    scores = run(checkpoint)
    assert all(values.max() > 0 for values in scores.importance.values())
