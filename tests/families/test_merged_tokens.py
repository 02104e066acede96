"""Every family whose tokens merge, through the whole pipeline: scores, search, pruning, refit, export."""

import copy
import json

import pytest
import torch
from helpers.masks import make_mask
from helpers.models import IMAGES, logits, make_pixels, random_kept, save_images
from helpers.running import call, done
from helpers.tokens import tokens_kept

import optin_cli
from optin_cli.artifacts.mask import Budget, GroupMask
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.checkpoints.checks import require_tokens
from optin_cli.data.batch import Batch
from optin_cli.errors import ArchitectureError, ArtifactError, BudgetError
from optin_cli.model.cut import PrunedModel, cut
from optin_cli.model.masking import masked
from optin_cli.model.tokens import tokens_of
from optin_cli.options.scoring import ScoreOptions
from optin_cli.refit.refit import refit_model
from optin_cli.searching.costs import Costs
from optin_cli.searching.limits import Limits

MERGING = [
    family
    for family in IMAGES
    if "vit" in family or "deit" in family or "dinov2" in family
    if "mobilevit" not in family
]

TOKENS_TOO = ScoreOptions(samples=8, probes=1, batch_size=4, exact_samples=4, units=("heads", "neurons", "tokens"))


@pytest.mark.parametrize("family", MERGING)
def test_every_family_that_merges_computes_what_was_promised(image_checkpoint, pets, tmp_path, family):
    """Scored, searched, cut and certified: what is promised is measured, and the folder computes the same."""
    checkpoint = image_checkpoint(family)
    tokens = require_tokens(checkpoint)
    scores = optin_cli.score(checkpoint, str(pets), options=TOKENS_TOO)
    named = {name for name, group in scores.header.groups.items() if group.kind == "token"}
    assert named == {"encoder.0.token", "encoder.1.token"} == set(tokens.units)
    assert all((scores.importance[name] >= 0).all() for name in named)
    for share in (0.75, 0.5):
        mask = optin_cli.search(scores, Limits(keep_macs=share))
        assert mask.budget.reached["macs"] <= share
    # A random model may lose least by width alone: merging is that of a budget which nothing else can meet.
    with pytest.raises(BudgetError) as caught:
        optin_cli.search(scores, Limits(keep_macs=1e-4, protect=("*.head", "*.neuron")))
    share = (1 + caught.value.reachable[1]) / 2
    merging = optin_cli.search(scores, Limits(keep_macs=share, protect=("*.head", "*.neuron")))
    assert merging.budget.reached["macs"] <= share
    groups = {name: merging.groups[name] if name in named else group for name, group in mask.groups.items()}
    assert sum(group.units - len(group.kept) for name, group in groups.items() if name in named) > 0
    assert sum(group.units - len(group.kept) for name, group in groups.items() if name not in named) > 0
    now = Costs.of(scores.header).remaining({n: g.kept for n, g in groups.items()})
    mask = mask.model_copy(update={"groups": groups, "budget": Budget(asked={}, reached=now)})
    manifest = optin_cli.prune(checkpoint, mask, tmp_path / "small")
    assert manifest.certificate.reloaded <= manifest.certificate.tolerance
    kept = {name: group.kept for name, group in mask.groups.items()}
    assert manifest.after.macs / manifest.before.macs == pytest.approx(now["macs"], rel=1e-9)
    inputs = make_pixels(checkpoint.model, 3)
    with masked(checkpoint.model, checkpoint.structure, kept):
        expected = logits(checkpoint.model, inputs)
    small = load_checkpoint(tmp_path / "small")
    torch.testing.assert_close(logits(small.model, inputs), expected, rtol=1e-4, atol=1e-4)
    assert optin_cli.profile(small).totals == manifest.after
    assert not torch.allclose(logits(checkpoint.model, inputs), expected, rtol=1e-3)
    with pytest.raises(ArchitectureError, match="merge already"):
        require_tokens(small)


def test_refit_of_a_merged_model(image_checkpoint):
    """Each consumer is fitted to the original's stream at the tokens that are left; the answers get nearer."""
    checkpoint = image_checkpoint("timm-dinov2")
    kept = {**random_kept(checkpoint.structure, 1), **tokens_kept(checkpoint, 3, 1)}
    keys = [tuple(f"{batch}.{row}" for row in range(16)) for batch in range(4)]
    batches = [Batch(make_pixels(checkpoint.model, 16, seed=n), None, k) for n, k in enumerate(keys)]
    model = copy.deepcopy(checkpoint.model)
    cut(model, checkpoint.structure, kept)
    inputs = make_pixels(checkpoint.model, 16, seed=9)
    target, before = logits(checkpoint.model, inputs), logits(model, inputs)
    report = refit_model(PrunedModel(checkpoint.model, model, checkpoint.structure, kept), batches)
    assert set(report) == {group.name for group in checkpoint.structure.groups}
    assert all(part.after < part.before for part in report.values())
    assert (logits(model, inputs) - target).square().mean() < 0.5 * (before - target).square().mean()


def test_masks_edited_to_merge_too_much_are_refused(image_checkpoint, tmp_path):
    checkpoint = image_checkpoint("timm-vit")
    none = make_mask(checkpoint, {"encoder.0.token": [0, 1, 2], "encoder.1.token": []}, tokens=True)
    with pytest.raises(ArtifactError, match=r"no token would go on behind encoder\.1; at least one must") as caught:
        optin_cli.prune(checkpoint, none, tmp_path / "small")
    assert "Keep 1 to 9 units" in caught.value.hint
    for groups, found in (
        ({"encoder.0.token": GroupMask(units=8, kept=[0])}, "has 8 units; in timm-vit it has 9"),
        ({"encoder.2.token": GroupMask(units=9, kept=[0])}, "masks the group 'encoder.2.token'"),
    ):
        mask = make_mask(checkpoint, tokens=True)
        with pytest.raises(ArtifactError, match=found):
            optin_cli.prune(
                checkpoint, mask.model_copy(update={"groups": {**mask.groups, **groups}}), tmp_path / "small"
            )
    assert not (tmp_path / "small").exists()
    uniform = make_mask(checkpoint, {"encoder.0.token": [0, 1, 2]}, tokens=True, options={"layout": "uniform"})
    with pytest.raises(ArtifactError, match="its config has no key for tokens that merge"):
        optin_cli.prune(checkpoint, uniform, tmp_path / "small")
    all_but_one = make_mask(checkpoint, {"encoder.0.token": [4]}, tokens=True)
    assert tokens_of(checkpoint.structure).counts({"encoder.0.token": [4]}) == [8, 0, 0]
    assert optin_cli.prune(checkpoint, all_but_one, tmp_path / "small").certificate.reloaded == 0


def test_tokens_go_through_every_command(image_checkpoint, pets, here, reload_server):
    """The whole pipeline with tokens, and a cut folder cut again: heads and neurons go, tokens are refused."""
    image_checkpoint("timm-vit")
    checkpoint = save_images(here / "vit", "timm-vit")
    options = ("--calib", pets, "--samples", "12", "--exact-samples", "4", "--batch-size", "6", "--probes", "1")
    result = done("score", checkpoint, *options, "--units", "heads,neurons,tokens", "-o", "s")
    assert result.out.strip() == "s" and sorted(p.name for p in here.iterdir()) == ["s", "vit"]
    done("score", checkpoint, *options, "--units", "heads,neurons,tokens", "-o", "again")
    assert (here / "s").read_bytes() == (here / "again").read_bytes()
    found = done("search", "s", "--keep-flops", "0.5", "--protect", "encoder.1.token", "-o", "m")
    assert "token" in found.err
    mask = json.loads((here / "m").read_text())
    assert mask["groups"]["encoder.1.token"] == {"units": 9, "kept": [*range(9)]}
    mask["groups"]["encoder.0.token"]["kept"] = [5, 6, 7, 8]  # a random model may lose least without
    (here / "m").write_text(json.dumps(mask))
    uniform = done("search", "s", "--keep-flops", "0.8", "--layout", "uniform", "--json")
    assert all(len(g["kept"]) == 9 for name, g in json.loads(uniform.out)["groups"].items() if "token" in name)
    whole = done("search", "s", "--keep-params", "0.9", "--json")
    assert all(len(g["kept"]) == 9 for name, g in json.loads(whole.out)["groups"].items() if "token" in name)
    done("prune", checkpoint, "--mask", "m", "--calib", pets, "--samples", "24", "-o", "small")
    code = "import sys; sys.modules['optin_cli'] = None; sys.path.insert(0, 'small'); import modeling_optin as m, torch"
    ran = reload_server.python(f"{code}; print(tuple(m.load_model()(torch.zeros(2, 3, 24, 24)).shape))", cwd=here)
    assert ran.stdout.strip() == "(2, 3)", ran.stderr
    assert "certified by onnxruntime" in done("export", "small", "--to", "onnx", "-o", "exported").err
    again = done("score", "small", *options, "-o", "s2")
    assert again.out.strip() == "s2"
    done("search", "s2", "--keep-flops", "0.8", "-o", "m2")
    done("prune", "small", "--mask", "m2", "--calib", pets, "--samples", "24", "-o", "smaller")
    done("eval", "smaller", "--against", "small", "--latency-runs", "1")
    refused = call("score", "small", *options, "--units", "heads,tokens")
    assert refused.code == 1 and "its tokens merge already" in refused.err
    assert "Traceback" not in refused.err
