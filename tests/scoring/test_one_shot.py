"""Estimators against definitions, against each other, and against interruption."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import (
    FAMILIES,
    HEADS,
    build,
    clone,
    make_batch,
    make_inputs,
    pick,
    root_of,
    save_checkpoint,
    structure_of,
)
from helpers.running import Watch

from optin_cli.artifacts.base import Source
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.data.batch import Batch
from optin_cli.errors import ArtifactError, CheckpointError, DataError, UsageError
from optin_cli.model.cut import cut
from optin_cli.model.forward import observe
from optin_cli.model.lookup import tensor_at
from optin_cli.model.masking import gated
from optin_cli.options.scoring import ScoreOptions
from optin_cli.scoring import moments
from optin_cli.scoring.accumulate import Accumulator, SavedState
from optin_cli.scoring.baselines import fisher_batch, magnitude, random_importance
from optin_cli.scoring.calibration import Calibration
from optin_cli.scoring.distances import manifold_distance, output_distance
from optin_cli.scoring.exact import exact_batch, trajectory_distance
from optin_cli.scoring.one_shot import score_checkpoint
from optin_cli.scoring.sketch import Objective, sketch_batch

BOTH = Objective(1.0, 1.0, 1.0)


def exact(model, structure, batch, objective=BOTH, **options):
    return exact_batch(model, structure, batch, objective, **({"rows": 64} | options))


def sketch(model, structure, batch, objective=BOTH, *, probes=3, seed=0):
    return sketch_batch(model, structure, batch, objective, probes=probes, seed=seed)


def assert_close(mine, theirs, tolerance=1e-4):
    """Equal to rounding, relative to the largest importance of the group."""
    assert mine.keys() == theirs.keys()
    for name, values in mine.items():
        scale = float(theirs[name].abs().max())
        torch.testing.assert_close(values, theirs[name], rtol=tolerance, atol=tolerance * scale, msg=name)


# Exact


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["classes", "answers"])
def test_replay_changes_nothing(family, head):
    model = build(family, head, **({"n_layers": 2} if family == "distilbert" else {"num_hidden_layers": 2}))
    structure, batch = structure_of(model, head), make_batch(rows=2, tokens=6, padding=2)
    units = {g.name: range(0, g.units, 1 if g.kind == "head" else 10) for g in structure.groups}
    with_replay = exact(model, structure, batch, units=units)
    assert_close(with_replay, exact(model, structure, batch, units=units, rows=None))
    assert all((values > 0).any() for values in with_replay.values())


@pytest.mark.parametrize("head", HEADS)
def test_exact_is_the_distance_to_the_model_really_cut(head):
    model = build("bert", head, num_hidden_layers=2)
    structure, batch = structure_of(model, head), make_batch()
    mask, objective = batch.token_mask, Objective(0.7, 0.3, 2.0)
    reference = observe(model, structure, batch)
    scores = exact(model, structure, batch, objective)
    for name, unit in [("encoder.0.head", 1), ("encoder.0.neuron", 5), ("encoder.1.head", 2), ("encoder.1.neuron", 0)]:
        small = clone(model)
        cut(small, structure, {name: [u for u in range(structure.group(name).units) if u != unit]})
        mine = observe(small, structure, batch)
        first = int(name.split(".")[1])
        manifold = sum(
            manifold_distance(a, b, mask) for a, b in list(zip(mine.features, reference.features, strict=True))[first:]
        )
        output = sum(
            rule.weight * output_distance(a, b, rule.kind, 2.0, mask if head in ("tokens", "base") else None)
            for a, b, rule in zip(mine.outputs, reference.outputs, structure.outputs, strict=True)
        )
        torch.testing.assert_close(
            scores[name][:, unit], (0.7 * manifold + 0.3 * output).double(), rtol=1e-3, atol=1e-7
        )


def test_a_unit_that_nothing_reads_has_no_importance():
    model = build("bert")
    structure, batch = structure_of(model), make_batch()
    for group in structure.groups:
        tensor_at(model, f"{group.consumer}.weight")[:, : group.unit_width] = 0
    for scores in (exact(model, structure, batch), sketch(model, structure, batch)):
        for values in scores.values():
            assert values[:, 0].abs().max() < 1e-9
            assert (values[:, 1:].mean(dim=0) > 0).any()


# Sketch


def second_order(head, model, structure, inputs, objective, eps=1e-3):
    """Half of importance(1 + eps) + importance(1 - eps), over eps^2, in double precision: (units,) by group name."""
    wide = clone(model).double()
    batch = Batch(inputs, None, tuple(map(str, range(len(inputs["input_ids"])))))
    with torch.no_grad():
        reference = observe(wide, structure, batch)
        found = {}
        for group in structure.groups:
            step = eps * torch.eye(group.units, dtype=torch.float64)
            gates = torch.cat([1 + step, 1 - step])
            with gated(wide, {group: gates}):
                mine = observe(wide, structure, batch.repeated(2 * group.units))
            distance = trajectory_distance(mine, reference, structure, batch, objective, 0).double() / eps**2
            found[group.name] = distance.reshape(2, -1).mean(dim=0)
    return found


@pytest.mark.parametrize(
    ("head", "objective"),
    [
        ("classes", Objective(1.0, 0.0, 1.0)),
        *[(head, Objective(0.0, 0.5, 2.0)) for head in HEADS],
        ("classes", Objective(1.0, 1.0, 1.0)),
        ("answers", Objective(1.0, 1.0, 1.0)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.manifold:g}-{value.output:g}",
)
def test_sketch_is_the_second_order_importance_in_expectation(head, objective):
    model = build("bert", head, num_hidden_layers=2, intermediate_size=12)
    structure = structure_of(model, head)
    inputs, copies, probes = make_inputs(rows=2, tokens=7, padding=3), 500, 8
    keys = tuple(f"{row}/{copy}" for row in range(2) for copy in range(copies))
    many = Batch({name: t.repeat_interleave(copies, dim=0) for name, t in inputs.items()}, None, keys)
    estimates = sketch(model, structure, many, objective, probes=probes)
    for row in range(2):
        one = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        for name, expected in second_order(head, model, structure, one, objective).items():
            values = estimates[name].reshape(2, copies, -1)[row]
            error = values.std(dim=0) / math.sqrt(copies)
            assert (
                (values.mean(dim=0) - expected).abs() <= 4.5 * error + 1e-3 * expected + 1e-5 * expected.max()
            ).all()
            assert values.mean(dim=0).sum() == pytest.approx(float(expected.sum()), rel=0.2)


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


def test_sketch_draws_depend_on_seed_probe_and_key():
    model = build("bert")
    structure, batch = structure_of(model), make_batch(rows=1, padding=0)
    first = sketch(model, structure, batch, probes=1)
    assert_close(sketch(model, structure, batch, probes=1), first, 0)
    other = Batch(batch.inputs, None, ("another",))
    for changed in (sketch(model, structure, batch, probes=1, seed=1), sketch(model, structure, other, probes=1)):
        assert not torch.allclose(changed["encoder.0.head"], first["encoder.0.head"])
    assert all((values >= 0).all() for values in first.values())


# Baselines


def test_magnitude_is_the_squared_norm_of_what_a_cut_removes():
    model = build("electra")
    structure = structure_of(model)
    for group in structure.groups[:2]:
        scores = magnitude(model, group)
        for unit in (0, group.units - 1):
            small = clone(model)
            cut(small, structure, {group.name: [u for u in range(group.units) if u != unit]})
            total = [sum(float(p.double().square().sum()) for p in m.parameters()) for m in (model, small)]
            assert scores[unit].item() == pytest.approx(total[0] - total[1], rel=1e-9)


def test_random_importance_depends_on_seed_and_name_alone():
    first, second = structure_of(build("bert")).groups[:2]
    assert torch.equal(random_importance(first, 0), random_importance(first, 0))
    assert not torch.equal(random_importance(first, 0), random_importance(first, 1))
    assert not torch.equal(random_importance(first, 0), random_importance(second, 0)[: first.units])


@pytest.mark.parametrize(
    ("head", "labels"), [("classes", torch.tensor([2, 0])), ("regression", torch.tensor([0.3, 2.0]))]
)
def test_fisher_is_the_squared_slope_of_the_loss(head, labels):
    model = build("bert", head).double()
    structure, batch, eps = structure_of(model, head), make_batch(labels=labels), 1e-5
    scores = fisher_batch(model, structure, structure.groups, batch)

    def loss(group, gates):
        with torch.no_grad(), gated(model, {group: gates}):
            logits = model(**batch.inputs).logits
        if head == "regression":
            return (logits.squeeze(-1) - labels).square()
        return -logits.log_softmax(dim=-1)[torch.arange(2), labels]

    for group in structure.groups[:2]:
        step = torch.zeros(group.units, dtype=torch.float64)
        step[1] = eps
        slope = (loss(group, 1 + step) - loss(group, 1 - step)) / (2 * eps)
        torch.testing.assert_close(scores[group.name][:, 1], slope.square(), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    ("head", "labels"), [("classes", None), ("labels", torch.tensor([1, 0])), ("answers", torch.tensor([1, 0]))]
)
def test_fisher_without_usable_labels(head, labels):
    model = build("bert", head)
    structure = structure_of(model, head)
    with pytest.raises(DataError) as caught:
        fisher_batch(model, structure, structure.groups, make_batch(labels=labels))
    assert "--criterion trajectory" in caught.value.hint


# Sums


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
def test_state_that_is_none(tmp_path, content):
    path = tmp_path / "state"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match="not the state of an interrupted run"):
        Accumulator.load(path, "print")


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
    """Whatever the state's size: a large one is not saved after every job, but always after the last."""
    options, state = ScoreOptions(criterion=criterion, probes=1), tmp_path / "state"
    whole = run(checkpoint, options=options).content()
    for small, saved in ((1 << 20, min(after, 3)), (0, 3 if after >= 3 else 1)):
        monkeypatch.setattr("optin_cli.scoring.accumulate.SMALL_STATE", small)
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint, options=options, state=SavedState(state), progress=Interrupt(after))
        asked = []
        watch = Watch(lambda _done, _total, what, asked=asked: asked.append(what))
        resumed = run(checkpoint, options=options, state=SavedState(state, resume=True), progress=watch)
        assert resumed.content() == whole
        assert sum(what in ("obs", "slimgpt") for what in asked) == 3 - saved
        state.unlink()


def test_layers_that_cannot_be_solved_again_are_sketched(checkpoint, monkeypatch):
    """Their importance is the mean of what the standard error is of."""
    options = ScoreOptions(probes=2)
    alone = run(checkpoint, options=replace(options, estimator="sketch"))
    whole = run(checkpoint, options=options)
    assert {(g.estimator, g.samples) for g in whole.header.groups.values()} == {("obs", 6)}
    consumer = checkpoint.structure.group("encoder.0.neuron").consumer
    monkeypatch.setattr(
        moments, "why_not", lambda module: "odd" * (module is checkpoint.model.get_submodule(consumer)) or None
    )
    found = run(checkpoint, options=options)
    for name, group in found.header.groups.items():
        odd = name == "encoder.0.neuron"
        assert group.estimator == ("sketch" if odd else "obs")
        np.testing.assert_allclose(found.importance[name], (alone if odd else whole).importance[name], rtol=1e-3)
        np.testing.assert_allclose(found.standard_error[name], alone.standard_error[name], rtol=1e-3, atol=1e-9)


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
    "earlier cuts": lambda _run: {"kept": {"encoder.0.head": [0, 2]}},
}
"""What another run has that is otherwise as `run`."""


@pytest.mark.parametrize("name", [*CHANGES, "version"])
def test_a_state_is_taken_up_by_the_same_run_alone(checkpoint, tmp_path, monkeypatch, name):
    """Whatever decides scores is part of the fingerprint: a run in which any of it differs refuses the state."""
    state = tmp_path / "state"

    def score(*, checkpoint, data, options, resume=False, kept=None, **rest):
        saved = SavedState(state, resume, kept)
        return score_checkpoint(checkpoint, data, options, state=saved, **rest)

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


@pytest.mark.parametrize("criterion", ["trajectory", "manifold", "output", "slimgpt", "fisher", "magnitude", "random"])
def test_every_criterion_scores_every_unit(checkpoint, criterion):
    needs_data = criterion not in ("magnitude", "random")
    options = ScoreOptions(criterion=criterion, probes=1)
    data = calibration(torch.tensor([0, 2])) if needs_data else None
    scores = score_checkpoint(checkpoint, data, options, seq_len=16)
    assert set(scores.importance) == {g.name for g in checkpoint.structure.groups}
    assert all((values >= 0).all() and values.max() > 0 for values in scores.importance.values())
    assert bool(scores.standard_error) == needs_data


def test_terms_add_up(checkpoint):
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "trajectroy"}, "Unknown criterion"),
        ({"probes": 0}, "probes is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"output_weight": -0.5}, "output_weight is -0.5"),
        ({"samples": 0}, "samples is 0"),
        ({"exact_kinds": ("hed",)}, "Unknown exact kind 'hed'"),
        ({"exact_kinds": ("heads", "tokens")}, "Unknown exact kind 'tokens'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UsageError, match=message):
        ScoreOptions(**options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_are_scored_in_single_precision(tmp_path, dtype):
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "model", dtype=dtype, num_hidden_layers=1))
    assert checkpoint.dtype == dtype
    scores = run(checkpoint)
    assert all(values.max() > 0 for values in scores.importance.values())
