"""Streamed models are pruned block by block into the folder that pruning them in memory writes."""

import random

import pytest
import torch
from helpers.masks import make_mask
from helpers.models import build, random_kept, tiny_tokenizer
from helpers.running import tree, write_rows

from optin_cli.artifacts.base import parse
from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.mask import GroupMask
from optin_cli.checkpoints.checkpoint import load
from optin_cli.errors import ArtifactError
from optin_cli.files import OutputError
from optin_cli.model.cut import cut
from optin_cli.options.refit import RefitOptions
from optin_cli.pruning.parts import Parts, cut_parts
from optin_cli.pruning.prune import prune
from optin_cli.refit.waypoint import RECORD

MADE = {
    "llama": ("next", {"dtype": torch.bfloat16, "tie_word_embeddings": False}),
    "qwen2": ("next", {"dtype": torch.float16, "tie_word_embeddings": True}),
    "bert": ("classes", {}),
}
"""Head, and how the model is made, by family."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiny checkpoints by family, in several shards. To be read only."""
    root, made = tmp_path_factory.mktemp("streamed"), {}

    def of(family):
        if family not in made:
            head, how = MADE[family]
            made[family] = root / family
            build(family, head, **how).save_pretrained(made[family], max_shard_size="15KB")
            tiny_tokenizer().save_pretrained(made[family])
            assert len([*made[family].glob("*.safetensors")]) > 2
        return made[family]

    return of


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    draw = random.Random(2)
    rows = [{"text": " ".join(draw.choices("abcdefghijklmnopqrst", k=draw.randint(4, 12)))} for _ in range(24)]
    return write_rows(tmp_path_factory.mktemp("calibration") / "texts.jsonl", rows)


def mask_of(folder, seed=0):
    checkpoint = load(folder)
    groups = {name: units for name, units in random_kept(checkpoint.structure, seed).items() if "dim" not in name}
    return make_mask(checkpoint, groups)


@pytest.mark.parametrize("family", MADE)
def test_streamed_folders_are_those_of_models_in_memory(family, folder, calibration, tmp_path):
    source, mask = folder(family), mask_of(folder(family))
    options = RefitOptions(samples=24, batch_size=8)
    for name, stream in (("whole", False), ("streamed", True)):
        checkpoint = load(source, stream=stream)
        assert (checkpoint.streaming is None) != stream
        prune(checkpoint, mask, tmp_path / name, refit=calibration, options=options)
        assert all(parameter.is_meta == stream for parameter in checkpoint.model.parameters())
    whole, streamed = (tree(tmp_path / name) for name in ("whole", "streamed"))
    assert whole.keys() == streamed.keys()
    assert [name for name in whole if whole[name] != streamed[name]] == []
    manifest = parse(Manifest, streamed["optin.json"], "optin.json")
    assert any(refit.kept for refit in manifest.refit.values())


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_blocks_are_cut_when_they_open_and_read_as_they_were_put_away(family, folder, tmp_path):
    whole, checkpoint = load(folder(family)), load(folder(family), stream=True)
    kept = random_kept(whole.structure, 3)
    kept = {name: units for name, units in kept.items() if "dim" not in name}
    cut(whole.model, whole.structure, kept)
    expected = whole.model.state_dict()
    with cut_parts(checkpoint, checkpoint.streaming, kept, tmp_path) as (parts, _):
        first, second, *_ = parts.streaming.blocks
        for path in (first, second):
            parts.pages.open(path)
            found = {n: t for n, t in parts.model.state_dict().items() if n.startswith(f"{path}.")}
            assert found and all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
        assert all(p.is_meta for p in parts.model.get_submodule(first).parameters())
        parts.arrive(first)
        changed = next(iter(parts.model.get_submodule(first).parameters()))
        changed.add_(1.0)
        parts.pages.open(second)
        assert not changed.is_meta  # the block that is changed stays open beside another
        parts.arrive(second)
        assert all(p.is_meta for p in parts.model.get_submodule(first).parameters())
        state = parts.stored()
        name = next(name for name in state if name.startswith(f"{first}."))
        assert torch.equal(state.pop(name).float(), (expected.pop(name) + 1).to(checkpoint.dtype).float())
        assert state.keys() == expected.keys()
        assert all(torch.equal(tensor.float(), expected[name].float()) for name, tensor in state.items())
        assert {t.dtype for n, t in state.items() if n.startswith(f"{first}.")} == {checkpoint.dtype}
    assert [*tmp_path.iterdir()] == []
    assert all(parameter.is_meta for parameter in checkpoint.model.parameters())


@pytest.mark.parametrize("moment", ["settle", "stored"])
def test_an_interrupted_run_leaves_nothing(moment, folder, calibration, tmp_path, monkeypatch):
    calls = []

    def interrupt(*_arguments):
        calls.append(moment)
        if len(calls) == 2 or moment == "stored":
            raise KeyboardInterrupt

    mask = mask_of(folder("llama"))
    monkeypatch.setattr(Parts, moment, interrupt)
    with pytest.raises(KeyboardInterrupt):
        prune(load(folder("llama"), stream=True), mask, tmp_path / "out", refit=calibration)
    assert [*tmp_path.iterdir()] == []


def test_units_that_are_no_slices_of_a_block_are_refused(folder, tmp_path):
    checkpoint = load(folder("bert"), stream=True)
    for name in ("encoder.1.head-dim", "encoder.1.block"):
        units = checkpoint.structure.units[name]
        mask = make_mask(checkpoint, {name: list(range(units // 2))})
        with pytest.raises(ArtifactError, match=rf"{name}; of a streamed model"):
            prune(checkpoint, mask, tmp_path / "out")
    assert [*tmp_path.iterdir()] == []


def test_whole_blocks_that_stay_are_no_obstacle(folder, tmp_path):
    checkpoint = load(folder("llama"), stream=True)
    mask = make_mask(checkpoint, {"decoder.0.block": [0], "decoder.1.neuron": [0, 1, 2]})
    assert isinstance(mask.groups["decoder.0.block"], GroupMask)
    prune(checkpoint, mask, tmp_path / "out")
    assert load(tmp_path / "out").structure.units["decoder.1.neuron"] == 3


class Stop:
    """Progress that interrupts a run when it reports something for the nth time."""

    def __init__(self, what, after=1):
        self.what, self.left, self.seen = what, after, []

    def update(self, _done, _total, what):
        self.seen.append(what)
        self.left -= self.what in what
        if self.left == 0:
            raise KeyboardInterrupt

    def count(self, samples):
        pass

    def read(self, data):
        pass

    def note(self, text):
        pass


def blocks_of(seen):
    """Names of blocks whose consumers were adjusted, in order."""
    return list(dict.fromkeys(what.rpartition(".")[0] for what in seen if what.startswith("decoder.")))


@pytest.mark.parametrize("what", ["decoder.0", "decoder.1", "saving"])
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
def test_an_interrupted_refit_goes_on_from_its_block(what, bias, folder, calibration, tmp_path):
    source, mask = folder("llama"), mask_of(folder("llama"))
    how = {"refit": calibration, "options": RefitOptions(samples=24, batch_size=8, add_bias=bias)}
    state, stop = tmp_path / "state", Stop(what, 1 if what == "saving" else 2)
    prune(load(source, stream=True), mask, tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        prune(load(source, stream=True), mask, tmp_path / "out", state=state, progress=stop, **how)
    assert state.is_dir() and not (tmp_path / "out").exists()
    other = mask_of(source, seed=1)
    with pytest.raises(ArtifactError, match="left by a run with other options, data or checkpoint"):
        prune(load(source, stream=True), other, tmp_path / "out", state=state, resume=True, **how)
    watch = Stop("nothing")
    prune(load(source, stream=True), mask, tmp_path / "out", state=state, resume=True, progress=watch, **how)
    blocks = ["decoder.0", "decoder.1", "decoder.2"]
    assert blocks_of(watch.seen) == (blocks[2:] if what == "saving" else blocks[blocks.index(what) :])
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert not state.exists()


def test_what_is_not_of_an_interrupted_run_is_refused(folder, calibration, tmp_path):
    source, mask, state = folder("llama"), mask_of(folder("llama")), tmp_path / "state"
    how = {"refit": calibration, "options": RefitOptions(samples=24, batch_size=8), "state": state}
    (state / "mine").mkdir(parents=True)
    with pytest.raises(OutputError, match="exists, where this run would keep"):
        prune(load(source, stream=True), mask, tmp_path / "out", **how)
    (state / "mine").rmdir()
    (state / RECORD).write_text("[]")
    with pytest.raises(ArtifactError, match="not the record of an interrupted run"):
        prune(load(source, stream=True), mask, tmp_path / "out", resume=True, **how)
    with pytest.raises(KeyboardInterrupt):
        prune(load(source, stream=True), mask, tmp_path / "out", progress=Stop("decoder.1", 2), **how)
    record = (state / RECORD).read_text()
    (state / RECORD).write_text(record.replace("decoder.1", "decoder.9"))
    with pytest.raises(ArtifactError, match=r"names the block 'decoder\.9', which the model does not have"):
        prune(load(source, stream=True), mask, tmp_path / "out", resume=True, **how)
    (state / RECORD).write_text(record)
    next((state / "blocks").iterdir()).unlink()
    with pytest.raises(ArtifactError, match="is gone, from which the interrupted run would go on"):
        prune(load(source, stream=True), mask, tmp_path / "out", resume=True, **how)
