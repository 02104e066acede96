"""Streamed scores are those of the whole model, byte for byte; runs go on after any step; what is not streamed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import build, save_checkpoint, tiny_tokenizer
from helpers.running import Watch

import optin_cli
from optin_cli.artifacts.scores import write_scores
from optin_cli.checkpoints.checkpoint import load
from optin_cli.errors import ArtifactError, OptinError, UsageError
from optin_cli.files import OutputError
from optin_cli.options.scoring import ScoreOptions
from optin_cli.scoring import spill
from optin_cli.scoring.score import forget

OPTIONS = ScoreOptions(samples=6, probes=2, batch_size=2, max_length=12)
CASES = [
    ("llama", "next", {}),
    ("llama", "next", {"criterion": "manifold"}),
    ("qwen3", "next", {"criterion": "output"}),
    ("gemma2", "next", {}),
    ("gpt2", "next", {}),
    ("opt", "next", {"units": ("neurons",)}),
    ("bert", "classes", {}),
    ("bert", "answers", {"probes": 3}),
    ("roberta", "tokens", {}),
    ("distilbert", "masked", {}),
    ("modernbert", "base", {}),
]


def checkpoint_folder(path, family, head):
    """A checkpoint in shards of 16 bits, with its tokenizer."""
    build(family, head, dtype=torch.bfloat16).save_pretrained(path, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(path)
    return path


def scored(folder, texts, *, stream, options=OPTIONS, **rest):
    return optin_cli.score(load(folder, stream=stream), str(texts), options, seq_len=8, **rest)


@pytest.mark.parametrize(("family", "head", "changes"), CASES)
def test_streamed_scores_are_those_of_the_whole_model(tmp_path, texts, family, head, changes):
    folder, options = checkpoint_folder(tmp_path / "model", family, head), replace(OPTIONS, **changes)
    for stream in (False, True):
        write_scores(tmp_path / f"{stream}", scored(folder, texts, stream=stream, options=options))
    assert (tmp_path / "True").read_bytes() == (tmp_path / "False").read_bytes()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return checkpoint_folder(tmp_path_factory.mktemp("llama") / "model", "llama", "next")


def steps_of(watched):
    """What each report of progress belongs to."""
    return [what.partition(",")[0] for what in watched]


def test_interrupted_runs_lose_no_more_than_one_step(tmp_path, texts, llama):
    said = []
    whole = scored(llama, texts, stream=True, progress=Watch(lambda _done, _total, what: said.append(what)))
    order = list(dict.fromkeys(steps_of(said)))
    assert order[:2] == ["embeddings", "decoder.0 forward"] and order[-2:] == ["decoder.0 backward", "averaging"]
    for stop in order[1:-1]:
        state, seen, begun = tmp_path / "state", [], []

        def interrupt(_done, _total, what, stop=stop, begun=begun):
            begun += [what] if what.startswith(stop) else []
            if len(begun) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            scored(llama, texts, stream=True, state=state, progress=Watch(interrupt))
        assert state.is_file() and (tmp_path / "state.streamed").is_dir()
        watch = Watch(lambda _done, _total, what, seen=seen: seen.append(what))
        found = scored(llama, texts, stream=True, state=state, resume=True, progress=watch)
        assert list(dict.fromkeys(steps_of(seen))) == order[order.index(stop) :]
        assert found.header == whole.header
        for name, values in whole.importance.items():
            assert np.array_equal(found.importance[name], values)
            assert np.array_equal(found.standard_error[name], whole.standard_error[name])
        forget(state)
        assert not list(tmp_path.iterdir())


def test_states_of_other_runs_and_without_their_files_are_refused(tmp_path, texts, llama):
    state = tmp_path / "state"

    def interrupt(_done, _total, what):
        if what.startswith("decoder.1 forward"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(llama, texts, stream=True, state=state, progress=Watch(interrupt))
    other = replace(OPTIONS, seed=1)
    with pytest.raises(ArtifactError, match="other options"):
        scored(llama, texts, stream=True, options=other, state=state, resume=True)
    with pytest.raises(ArtifactError, match="other options"):
        scored(llama, texts, stream=False, state=state, resume=True)
    for path in (tmp_path / "state.streamed").glob("inputs.1.*"):
        path.unlink()
    with pytest.raises(ArtifactError, match="is gone"):
        scored(llama, texts, stream=True, state=state, resume=True)
    assert scored(llama, texts, stream=True, state=state).importance, "without resume it starts over"


def test_a_disk_without_room_is_refused_before_work(tmp_path, texts, llama, monkeypatch):
    monkeypatch.setattr(spill.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 1000}))
    with pytest.raises(OutputError, match=r"0\.0 GiB, but the disk"):
        scored(llama, texts, stream=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"criterion": "fisher"}, "the criterion fisher"),
        ({"criterion": "magnitude"}, "the criterion magnitude"),
        ({"criterion": "slimgpt"}, "the criterion slimgpt"),
        ({"estimator": "sketch"}, "the estimator sketch"),
        ({"units": ("heads", "blocks")}, "scores of blocks"),
    ],
)
def test_what_is_not_streamed_is_refused_by_name(texts, llama, changes, words):
    with pytest.raises(UsageError, match=words):
        scored(llama, texts, stream=True, options=replace(OPTIONS, **changes))


def test_shared_layers_are_refused(tmp_path, texts):
    folder = save_checkpoint(tmp_path / "model", "albert")
    with pytest.raises(OptinError, match="cannot be streamed"):
        scored(folder, texts, stream=True)
