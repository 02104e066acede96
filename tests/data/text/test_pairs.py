"""Sentence pairs: batches side by side, selection, and labels that are no similarity."""

import pytest
from helpers.running import write_rows
from helpers.similarity import PAIRS, ROWS, TASK, samples_of

from optin_cli.data.spec import DataSpec
from optin_cli.data.text.pairs import pair_batches
from optin_cli.data.text.samples import load_samples
from optin_cli.errors import DataError


def test_calibration_does_not_depend_on_row_order(tmp_path):
    first, second = (write_rows(tmp_path / name, rows) for name, rows in (("a.jsonl", ROWS), ("b.jsonl", ROWS[::-1])))
    one, other = (load_samples(DataSpec(path=p, known=TASK, limit=5, seed=3)) for p in (first, second))
    assert (one.texts, one.sha256) == (other.texts, other.sha256)


def labelled_pairs(encoder, pairs=PAIRS, task=TASK, size=4):
    samples = samples_of(pairs)
    return pair_batches(samples, task, encoder.input.tokenizer(), batch_size=size, max_length=16)


def test_pairs_lie_side_by_side(encoder):
    batches = labelled_pairs(encoder)
    assert [batch.size for batch in batches] == [4, 4]
    assert len({key for batch in batches for key in batch.keys}) == 8
    tokenizer = encoder.input.tokenizer()
    for batch in batches:
        ids = [[i for i in row if i] for row in batch.inputs["input_ids"].tolist()]
        for place, row in enumerate(batch.rows[:2]):
            *texts, label = PAIRS[row]
            assert [ids[place], ids[place + 2]] == [tokenizer(text)["input_ids"] for text in texts]
            assert float(batch.labels[place]) == pytest.approx(label / 5)


@pytest.mark.parametrize(
    ("changes", "ranged", "message"),
    [
        ({"labels": [1.0, 7.0, 1.0, 2.0]}, True, r"label 7; those of stsb-cosine lie between 0 and 5"),
        ({"texts": [("a",)] * 4}, True, "one text a sample"),
        ({"labels": None}, True, "no labels"),
        ({}, False, "between which numbers"),
    ],
)
def test_labels_without_a_cosine_are_refused(encoder, changes, ranged, message):
    task = TASK if ranged else TASK.model_copy(update={"label_range": None})
    with pytest.raises(DataError, match=message):
        pair_batches(samples_of(PAIRS, **changes), task, encoder.input.tokenizer(), batch_size=4, max_length=16)


def test_evaluation_keeps_pairs(tmp_path):
    path = write_rows(tmp_path / "validation.jsonl", ROWS)
    samples = load_samples(DataSpec(path=path, known=TASK, role="evaluation"))
    assert sorted(samples.texts) == sorted((a, b) for a, b, _ in PAIRS)
    assert samples.head(2).labels == samples.labels[:2]
