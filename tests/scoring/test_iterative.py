"""Scores in rounds of pruning and refit."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.models import batch_of, save_checkpoint
from helpers.running import Watch

from optin_cli.artifacts.base import Source
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.errors import ArtifactError, UsageError
from optin_cli.model.cut import prune_copy
from optin_cli.options.scoring import ScoreOptions
from optin_cli.refit import refit
from optin_cli.scoring import iterative as rescoring
from optin_cli.scoring.accumulate import SavedState
from optin_cli.scoring.calibration import Calibration
from optin_cli.scoring.iterative import remaining, score_in_rounds
from optin_cli.scoring.one_shot import score_checkpoint
from optin_cli.searching.costs import Costs


def calibration_of(*batches):
    return Calibration(Source(name="texts", sha256="0" * 64), list(batches), list(batches))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_checkpoint(save_checkpoint(tmp_path_factory.mktemp("tiny") / "bert"))


def scores(tiny, calibration, score=score_in_rounds, *, estimator="sketch", **options):
    return score(tiny, calibration, ScoreOptions(probes=1, estimator=estimator, **options), seq_len=16)


def test_without_shares_scores_are_one_shot(tiny):
    calibration = calibration_of(batch_of())
    once = scores(tiny, calibration, score_checkpoint, rescore=())
    assert scores(tiny, calibration, rescore=()).content() == once.content()


def test_units_left_by_a_cut_have_the_score_they_have_in_the_refitted_model(tiny):
    calibration = calibration_of(batch_of())
    once = scores(tiny, calibration, score_checkpoint, rescore=())
    twice = scores(tiny, calibration, rescore=(0.6,))
    everything = {g.name: list(range(g.units)) for g in tiny.structure.groups}
    kept = rescoring.choose_among(everything, once.importance, Costs.of(once.header), 0.6)
    assert Costs(once.header.groups, once.header.totals).remaining(kept)["macs"] <= 0.6
    pruned = prune_copy(tiny.model, tiny.structure, kept)
    refit.refit_model(pruned, calibration.batches)
    smaller = replace(tiny, model=pruned.model, structure=remaining(tiny.structure, kept))
    again = scores(smaller, calibration, score_checkpoint, rescore=())
    for group in tiny.structure.groups:
        gone = sorted(set(range(group.units)) - set(kept[group.name]))
        np.testing.assert_array_equal(twice.importance[group.name][gone], once.importance[group.name][gone])
        if kept[group.name]:
            np.testing.assert_array_equal(twice.importance[group.name][kept[group.name]], again.importance[group.name])
    assert twice.header.options["rescore"] == [0.6]


def test_units_that_went_do_not_come_back_in_later_rounds(tiny):
    once = scores(tiny, calibration_of(batch_of()), score_checkpoint, rescore=())
    alive = {g.name: [0] for g in tiny.structure.groups}
    found = rescoring.choose_among(alive, once.importance, Costs.of(once.header), 0.9)
    assert all(set(units) <= {0} for units in found.values())


@pytest.mark.parametrize(
    ("options", "rows"),
    [({"criterion": "magnitude"}, 12), ({"criterion": "wanda"}, 12), ({"criterion": "trajectory"}, 4)],
)
def test_baselines_and_too_few_samples_are_scored_once_and_say_so(tiny, options, rows):
    assert scores(tiny, calibration_of(batch_of(rows)), rescore=(0.8, 0.6), **options).header.options["rescore"] == []


def interrupted(tiny, state, *, seq_len, rounds):
    """Leave the states of a run that is stopped in the given round of scoring, at its second batch."""
    begun = []

    def stop(_done, _total, what):
        begun.append(what)
        sketched = [number for number, name in enumerate(begun) if name == "sketch"]
        if len(sketched) == 2 * rounds + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resumed(tiny, state, seq_len=seq_len, resume=False, progress=Watch(stop))


def resumed(tiny, state, *, seq_len=60, resume=True, **options):
    calibration, once = (
        calibration_of(batch_of(), batch_of(seed=1)),
        ScoreOptions(probes=1, estimator="sketch", rescore=(0.5,)),
    )
    return score_in_rounds(tiny, calibration, once, seq_len=seq_len, state=SavedState(state, resume), **options)


@pytest.mark.parametrize("rounds", [0, 1])
def test_states_of_another_sequence_length_are_refused(tiny, tmp_path, rounds):
    """What units cost at a length decides what a round scores, even where as many of them are left."""
    state = tmp_path / "state"
    interrupted(tiny, state, seq_len=60, rounds=rounds)
    left = sorted(tmp_path.iterdir())
    assert [path.name for path in left] == ["state", "state.1"][: rounds + 1]
    with pytest.raises(ArtifactError, match=r"state was left by a run with other options"):
        resumed(tiny, state, seq_len=8)
    assert sorted(tmp_path.iterdir()) == left
    assert resumed(tiny, state).content() == resumed(tiny, None).content()


@pytest.mark.parametrize("gone", [True, False])
def test_the_state_of_a_round_is_of_the_units_that_it_kept(tiny, tmp_path, monkeypatch, gone):
    """Without the first round's state that round runs again; the second's is still of its own model."""
    state = tmp_path / "state"
    interrupted(tiny, state, seq_len=60, rounds=1)
    if gone:
        state.unlink()
    choose = rescoring.choose_among
    with monkeypatch.context() as patch:

        def others(alive, *more):
            found = choose(alive, *more)
            return {name: sorted((unit + 1) % len(alive[name]) for unit in units) for name, units in found.items()}

        patch.setattr(rescoring, "choose_among", others)
        with pytest.raises(ArtifactError, match=r"state\.1 was left by a run with other options"):
            resumed(tiny, state)
    assert resumed(tiny, state).content() == resumed(tiny, None).content()


def test_a_share_out_of_reach_ends_the_rounds(tiny):
    found = scores(tiny, calibration_of(batch_of()), rescore=(0.7, 1e-6))
    assert found.header.options["rescore"] == [0.7]


def test_a_round_may_be_left_without_the_kind_to_score_exactly(tiny, monkeypatch):
    """What the whole model has was asked for; that a cut leaves none of it is no mistake of the user's."""
    choose = rescoring.choose_among

    def without_heads(*given):
        return {name: [] if name.endswith("head") else units for name, units in choose(*given).items()}

    monkeypatch.setattr(rescoring, "choose_among", without_heads)
    options = {"estimator": "hybrid", "exact_kinds": ("heads",), "rescore": (0.5,)}
    found = scores(tiny, calibration_of(batch_of()), **options)
    assert found.header.options["rescore"] == [0.5]
    assert {group.estimator for name, group in found.header.groups.items() if name.endswith("head")} == {"exact"}


@pytest.mark.parametrize("kinds", [("channels",), ("heads", "channel")])
def test_kinds_to_score_exactly_that_a_model_lacks(tiny, kinds):
    """Named, they are refused before any work; heads, the default, may be missing."""
    options = {"estimator": "hybrid", "rescore": ()}
    with pytest.raises(UsageError, match="no units of kind 'channel' to score exactly; what is scored is head, neuron"):
        scores(tiny, calibration_of(batch_of()), exact_kinds=kinds, **options)
    neurons = tuple(group for group in tiny.structure.groups if group.kind == "neuron")
    headless = replace(tiny, structure=tiny.structure.with_groups(neurons))
    found = scores(headless, calibration_of(batch_of()), **options)
    assert {group.estimator for group in found.header.groups.values()} == {"sketch"}


@pytest.mark.parametrize("shares", [(0.6, 0.8), (1.0,), (0.0,), (0.5, 0.5)])
def test_shares_must_fall(shares):
    with pytest.raises(UsageError, match="rescore"):
        ScoreOptions(estimator="sketch", rescore=shares)


def test_no_rounds_where_one_pass_serves_every_budget():
    with pytest.raises(UsageError, match=r"rescore is 0\.8, but the estimator obs scores once") as caught:
        ScoreOptions(rescore=(0.8,))
    assert "--estimator sketch" in caught.value.hint
    assert ScoreOptions(criterion="magnitude", rescore=(0.8,)).rescore == (0.8,)


def test_rounds_go_on_where_layers_without_bias_lose_all_their_units(tmp_path):
    llama = load_checkpoint(save_checkpoint(tmp_path / "llama", "llama", "next"))
    calibration = calibration_of(batch_of())
    found = scores(llama, calibration, rescore=(0.5, 0.24))
    assert found.header.options["rescore"] == [0.5, 0.24]
    assert all(np.isfinite(values).all() for values in found.importance.values())
    everything = {g.name: list(range(g.units)) for g in llama.structure.groups}
    once = scores(llama, calibration, score_checkpoint, rescore=())
    kept = rescoring.choose_among(everything, once.importance, Costs.of(once.header), 0.24)
    assert any(not units for units in kept.values())
