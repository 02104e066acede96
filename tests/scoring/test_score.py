"""Scores through the Python API: estimators and their records, criteria without data, short models."""

import json
from dataclasses import replace

import pytest

import optin_cli
from optin_cli.model.head_dims import head_dims_of
from optin_cli.options.scoring import ScoreOptions
from optin_cli.searching.limits import Limits

OPTIONS = ScoreOptions(samples=4, probes=1, batch_size=4, max_length=24)


@pytest.mark.parametrize("estimator", ["obs", "sketch", "exact", "hybrid"])
def test_estimators_and_their_records(bert, texts, estimator):
    options = replace(OPTIONS, estimator=estimator, exact_samples=2, rows=64)
    scores = optin_cli.score(bert, str(texts), options=options)
    used = {name: (group.estimator, group.samples) for name, group in scores.header.groups.items()}
    expected = {"head": (estimator, 4) if estimator in ("obs", "sketch") else ("exact", 2)}
    expected["neuron"] = ("exact", 2) if estimator == "exact" else ("obs" if estimator == "obs" else "sketch", 4)
    dims = head_dims_of(bert.structure.kinds).units if estimator == "obs" else {}
    assert used == {g.name: expected[g.kind] for g in bert.structure.groups} | dict.fromkeys(dims, ("obs", 4))
    assert set(scores.standard_error) == set(scores.importance)
    assert all((values >= 0).all() and values.any() for values in scores.importance.values())


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_criteria_without_data(bert, criterion):
    scores = optin_cli.score(bert, options=ScoreOptions(criterion=criterion))
    mask = optin_cli.search(scores, Limits(keep_macs=0.5, keep_parameters=0.9, round_to=8, minima={"head": 1}))
    assert mask.budget.reached["macs"] <= 0.5 and mask.budget.reached["parameters"] <= 0.9
    assert all(len(g.kept) % 8 == 0 for name, g in mask.groups.items() if name.endswith("neuron"))
    assert all(g.kept for name, g in mask.groups.items() if name.endswith("head"))


def test_options_fit_short_models(bert, texts):
    """The default length is what the model holds: 48 tokens here."""
    assert optin_cli.score(bert, str(texts), options=ScoreOptions(samples=4, probes=1)).importance


@pytest.mark.parametrize("text", ["", "a", "the the the the", "\U0001f642 \x07 \u202e"])
def test_texts_that_say_little_give_no_negative_importance(bert, tmp_path, text):
    """Queries and keys of few tokens have a low rank: what some dimensions cost is 0, give or take rounding."""
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"sentence": text}) + "\n")
    scores = optin_cli.score(bert, str(path), options=replace(OPTIONS, samples=1))
    assert any(name.endswith("head-dim") for name in scores.importance)
    assert all((values >= 0).all() for values in scores.importance.values())
