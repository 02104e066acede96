"""`optin search`: several budgets, its options, and the uniform layout."""

from pathlib import Path

import pytest
from helpers.running import call, done

from optin_cli.artifacts.base import parse
from optin_cli.artifacts.mask import Mask


def test_several_budgets_give_several_masks(work, made):
    result = done("search", made.scores, "--keep-flops", "0.7,0.6", "--keep-params", "0.9")
    names = ["bert.mask-0.7-0.9.json", "bert.mask-0.6-0.9.json"]
    assert result.out.splitlines() == names
    assert sorted(p.name for p in work.glob("*mask*")) == sorted(names)
    result = done("search", made.scores, "--keep-flops", "0.7,0.6", "-o", "masks")
    assert result.out.splitlines() == ["masks/mask-0.7.json", "masks/mask-0.6.json"]
    for path, share in zip(result.out.splitlines(), (0.7, 0.6), strict=True):
        mask = parse(Mask, Path(path).read_text(), path)
        assert mask.budget.asked == {"macs": share}
        assert mask.budget.reached["macs"] <= share
    assert call("search", made.scores, "--keep-flops", "0.7,0.6", "-o", "masks").code == 1
    done("search", made.scores, "--keep-flops", "0.7,0.6", "-o", "masks", "--force")


def test_minima_protection_and_rounding_are_kept(work, made):
    args = ["--min-heads", "1", "--min-neurons", "3", "--protect", "encoder.1.*", "--round-to", "8", "--json"]
    mask = parse(Mask, done("search", made.scores, "--keep-flops", "0.5", *args).out, "stdout")
    kept = {name: len(group.kept) for name, group in mask.groups.items()}
    assert kept["encoder.1.head"] == 4 and kept["encoder.1.neuron"] == 40
    assert min(n for name, n in kept.items() if name.endswith("head")) >= 1
    assert all(n >= 3 and n % 8 == 0 for name, n in kept.items() if name.endswith("neuron"))
    picture = done("search", made.scores, "--keep-flops", "0.5", "-o", "m.json").err
    assert "encoder.2" in picture and "●" in picture and "/40" in picture


@pytest.fixture
def bert(here, made):
    """Scores of BERT, whose config states neurons but no heads."""
    return made.scores


def test_search_states_what_uniformity_costs(bert, here):
    run = done("search", bert, "--keep-flops", "0.9", "--layout", "uniform", "-o", "uniform.json")
    mask = parse(Mask, (here / "uniform.json").read_text(), "uniform.json")
    ragged = parse(Mask, done("search", bert, "--keep-flops", "0.9", "-o", "-").out, "ragged")
    assert mask.options["layout"] == "uniform" and ragged.options["layout"] == "ragged"
    assert mask.ragged_importance_lost == ragged.importance_lost <= mask.importance_lost
    assert f"would lose {ragged.importance_lost:.4g}" in run.err
    assert "stays whole: encoder.head" in run.err
    assert {len(g.kept) for name, g in mask.groups.items() if name.endswith("head")} == {4}


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--keep-flops", "0.9", "--layout", "even"), 2, "Unknown --layout 'even'"),
        (("--keep-flops", "0.9", "--layout", "uniform", "--protect", "encoder.0.*"), 2, "is protected and"),
        (("--keep-flops", "0.9", "--layout", "uniform", "--algorithm", "optin"), 2, "has no uniform layout"),
        (("--keep-flops", "0.05", "--layout", "uniform"), 1, "which encoder.head and encoder.head-dim stay whole"),
    ],
)
def test_contradicting_searches_are_refused(bert, here, args, code, words):
    run = call("search", bert, *args)
    assert run.code == code and words in run.err and "Traceback" not in run.err
    assert not list(here.iterdir())
