"""Text batches: order, padding, truncation, and the length that a model can use."""

from types import SimpleNamespace

import pytest
import torch
from helpers.tokenizers import make_tokenizer

from optin_cli.checkpoints.text_input import TextInput
from optin_cli.data.text.samples import Samples
from optin_cli.data.text.tokenize import make_batches, usable_length
from optin_cli.errors import DataError, UsageError


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def samples_of(*texts, labels=None):
    return Samples("d", "all", [t if isinstance(t, tuple) else (t,) for t in texts], labels, None, "0" * 64, len(texts))


def test_batches_are_sorted_by_length_and_padded(tokenizer):
    samples = samples_of("good bad film", "good", "bad film", "ab", labels=[0, 1, 1, 0])
    first, last = make_batches(samples, tokenizer, batch_size=2, max_length=8, labels=samples.labels)
    assert first.size == last.size == 2
    assert first.inputs["input_ids"].shape == (2, 4)
    assert last.inputs["input_ids"][-1].tolist() == [2, 4, 5, 6, 3]
    assert last.token_mask.sum(1).tolist() == [4, 5]
    assert last.labels.tolist()[-1] == 0
    assert last.labels.dtype == torch.int64
    moved = last.to("meta")
    assert moved.inputs["input_ids"].device.type == moved.labels.device.type == "meta"
    assert moved.keys == last.keys


def test_pairs_are_truncated_and_padded_on_either_side():
    left = make_tokenizer(padding_side="left")
    samples = samples_of(("good film", "bad"), ("a", "a"), labels=[0.5, 2.0])
    (batch,) = make_batches(samples, left, batch_size=2, max_length=5, labels=samples.labels)
    assert sorted(batch.inputs["input_ids"].tolist()) == [[2, 4, 3, 5, 3], [2, 7, 3, 7, 3]]
    assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]] * 2
    assert batch.labels.dtype == torch.float32
    (single,) = make_batches(samples_of("a", "good film"), left, batch_size=2, max_length=5)
    assert single.inputs["input_ids"].tolist() == [[0, 2, 7, 3], [2, 4, 6, 3]]
    assert single.inputs["attention_mask"].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert single.labels is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0, "max_length": 8}, UsageError, "batch size is 0"),
        ({"batch_size": 2, "max_length": 2}, UsageError, "of which 2 are special ones; expected at least 3"),
        ({"batch_size": 2, "max_length": 8}, DataError, "no padding token"),
    ],
)
def test_batches_that_cannot_be_made_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        make_batches(samples_of("good", "bad film"), make_tokenizer(pad_token=None), **options)


def model_with(padding_idx):
    model = torch.nn.Module()
    model.positions = torch.nn.Embedding(66, 2, padding_idx=padding_idx)
    model.words = torch.nn.Embedding(66, 2, padding_idx=5)
    model.get_input_embeddings = lambda: model.words
    return model


@pytest.mark.parametrize(
    ("tokens", "positions", "padding_idx", "asked", "expected"),
    [
        (512, 512, None, None, 128),
        (512, 512, None, 512, 512),
        (64, 512, None, None, 64),
        (10**30, 66, None, None, 66),
        (10**30, 66, 1, None, 64),
        (10**30, 66, 3, None, 62),
        (10**30, None, None, 4096, 4096),
        (10**30, -1, None, None, 128),
        (64, 66, 1, 65, "expected 1 to 64"),
        (512, 66, 1, 65, "expected 1 to 64"),
        (512, 512, None, 0, "expected 1 to 512"),
    ],
)
def test_the_usable_length_is_the_least_limit(*, tokens, positions, padding_idx, asked, expected):
    tokenizer = SimpleNamespace(model_max_length=tokens)
    blueprint = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=positions), sentences=None)
    most = TextInput("m", blueprint, model_with(padding_idx)).most
    if isinstance(expected, int):
        assert usable_length(tokenizer, most, asked) == expected
    else:
        with pytest.raises(UsageError, match=expected):
            usable_length(tokenizer, most, asked)
