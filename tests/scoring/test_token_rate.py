"""What importance of tokens is worth against that of units once refit has run."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.models import save_images
from helpers.pictures import image_folder
from helpers.running import call
from helpers.sharing import in_processes

import optin_cli
from optin_cli.artifacts.scores import read_scores
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.data.spec import DataSpec
from optin_cli.errors import UsageError
from optin_cli.options.scoring import ScoreOptions
from optin_cli.scoring import token_rate as token_exchange
from optin_cli.scoring.calibration import calibrate
from optin_cli.scoring.token_rate import reachable
from optin_cli.searching.costs import importance_lost
from optin_cli.searching.limits import Limits

OPTIONS = ScoreOptions(samples=24, probes=1, batch_size=4, exact_samples=4, units=("heads", "neurons", "tokens"))
ARGUMENTS = "--samples 24 --probes 1 --batch-size 4 --exact-samples 4 --units heads,neurons,tokens"


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory):
    """A checkpoint, a folder of images, and scores with and without the exchange; to be read only."""
    root = tmp_path_factory.mktemp("exchange")
    image_folder(root / "pets", 24)
    checkpoint = load_checkpoint(save_images(root / "vit", "timm-vit"))
    scored, apart = (
        optin_cli.score(checkpoint, str(root / "pets"), options=replace(OPTIONS, token_exchange=share))
        for share in (0.8, None)
    )
    return root, checkpoint, scored, apart


def test_the_rate_is_of_what_refit_leaves_for_each_importance_lost(exchanged, monkeypatch):
    """With refitted models that differ by 3 (units cut) and 12 (tokens merged), and importances added up by hand."""
    root, checkpoint, _, apart = exchanged

    def parameters(model):
        return sum(parameter.numel() for parameter in model.parameters())

    def distance(original, model, *_rest):
        return 3.0 if parameters(model) < parameters(original.model) else 12.0

    monkeypatch.setattr(token_exchange, "refitted_distance", distance)
    samples = checkpoint.input.load_samples(DataSpec(path=root / "pets", limit=24))
    batches = calibrate(checkpoint, samples, OPTIONS, task=None, labelled=False).batches
    found = token_exchange.exchange_tokens(apart, checkpoint, batches, replace(OPTIONS, token_exchange=0.8))
    exchange = found.header.token_exchange
    lost = {}
    for kind, whole in (("units", ("*.token",)), ("tokens", ("*.head", "*.neuron"))):
        groups = optin_cli.search(apart, Limits(keep_macs=exchange.share, protect=whole)).groups
        lost[kind] = sum(
            float(np.delete(values, groups[name].kept).sum(dtype=np.float64))
            for name, values in apart.importance.items()
        )
    assert (exchange.units_distance, exchange.tokens_distance) == (3.0, 12.0)
    assert exchange.rate == pytest.approx((12.0 / lost["tokens"]) / (3.0 / lost["units"]), rel=1e-5)
    assert exchange.rate != pytest.approx(1.0, rel=0.1), "or this would show nothing"
    name = next(name for name in apart.importance if name.endswith(".token"))
    np.testing.assert_allclose(found.importance[name], exchange.rate * apart.importance[name], rtol=1e-6)


def test_tokens_alone_are_multiplied_by_the_measured_rate(exchanged):
    _, _, scored, apart = exchanged
    exchange = scored.header.token_exchange
    assert apart.header.token_exchange is None
    assert exchange.tokens_distance > 0 and exchange.units_distance > 0
    for name, values in scored.importance.items():
        rate = exchange.rate if name.endswith(".token") else 1
        np.testing.assert_allclose(values, rate * apart.importance[name], rtol=1e-6)
        np.testing.assert_allclose(scored.standard_error[name], rate * apart.standard_error[name], rtol=1e-6)


@pytest.mark.parametrize(("kind", "lost"), [("token", "units_lost"), ("head,neuron", "tokens_lost")])
def test_the_masks_compared_are_of_one_kind_each(exchanged, kind, lost):
    _, _, scored, apart = exchanged
    whole = tuple(f"*.{name}" for name in kind.split(","))
    mask = optin_cli.search(apart, Limits(keep_macs=scored.header.token_exchange.share, protect=whole))
    kept = {name: group.kept for name, group in mask.groups.items()}
    found = importance_lost(kept, apart.importance)
    assert getattr(scored.header.token_exchange, lost) == pytest.approx(found, rel=1e-6)


def test_a_share_that_one_kind_cannot_reach_gives_way(exchanged):
    _, _, _, apart = exchanged
    tokens = [name for name in apart.importance if name.endswith(".token")]
    units = [name for name in apart.importance if name not in tokens]
    assert reachable(apart, [tokens, units], 0.8) == 0.8
    share = reachable(apart, [tokens, units], 0.01)
    assert 0.5 < share < 1
    for others in (tokens, units):
        optin_cli.search(apart, Limits(keep_macs=share, protect=tuple(others)))


def test_too_few_samples_leave_tokens_as_scored(exchanged):
    root, checkpoint, _, _ = exchanged
    few = optin_cli.score(checkpoint, str(root / "pets"), options=replace(OPTIONS, samples=8))
    assert few.header.token_exchange is None


def test_the_command_line_gives_the_same(exchanged, tmp_path, monkeypatch):
    root, _, scored, apart = exchanged
    monkeypatch.chdir(tmp_path)
    for share, wanted in (("0.8", scored), ("none", apart)):
        arguments = ("score", root / "vit", "--calib", root / "pets", *ARGUMENTS.split(), "--token-exchange", share)
        result = call(*arguments, "-o", f"{share}.safetensors")
        assert result.code == 0, result.err
        found = read_scores(f"{share}.safetensors")
        assert found.header.token_exchange == wanted.header.token_exchange
        said = call("inspect", f"{share}.safetensors").out
        assert ("importances were multiplied by" in " ".join(said.split())) == (share != "none")
        for name, values in wanted.importance.items():
            np.testing.assert_array_equal(found.importance[name], values)


@pytest.mark.parametrize(
    ("share", "words"), [("0.8,0.7", "expected one number"), ("lots", "not a number"), ("1.2", "between 0 and 1")]
)
def test_shares_out_of_range_are_refused(exchanged, tmp_path, monkeypatch, share, words):
    root, _, _, _ = exchanged
    monkeypatch.chdir(tmp_path)
    result = call("score", root / "vit", "--calib", root / "pets", "--token-exchange", share)
    assert result.code == 2 and words in result.err and result.out == ""
    with pytest.raises(UsageError):
        ScoreOptions(token_exchange=0.0)


def test_processes_that_share_batches_find_the_same_rate(exchanged, tmp_path):
    root, checkpoint, scored, _ = exchanged

    def shared(processes):
        return optin_cli.score(replace(checkpoint, processes=processes), str(root / "pets"), options=OPTIONS).content()

    assert OPTIONS.token_exchange == 0.8 and scored.header.token_exchange is not None
    assert in_processes(2, shared, tmp_path) == [scored.content()] * 2
