"""Selection of samples depends on content and seed alone."""

import pytest
from helpers.datasets import load_texts
from helpers.running import write_rows
from helpers.tokenizers import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from optin_cli.data.text.tokenize import make_batches


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


ROWS = st.lists(
    st.tuples(st.sampled_from(["good", "bad film", "a", "very good"]), st.integers(0, 1)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(rows=ROWS, limit=st.none() | st.integers(1, 12), seed=st.integers(0, 3), data=st.data())
def test_nothing_depends_on_the_order_of_rows(*, tmp_path_factory, tokenizer, rows, limit, seed, data):
    folder = tmp_path_factory.mktemp("order")
    results = []
    for order in (rows, data.draw(st.permutations(rows))):
        path = write_rows(folder / "d.jsonl", [{"text": t, "label": y} for t, y in order])
        samples = load_texts(path, limit=limit, seed=seed)
        batches = make_batches(samples, tokenizer, batch_size=3, max_length=8, labels=samples.labels)
        results.append((samples, [(b.keys, b.inputs["input_ids"].tolist(), b.labels.tolist()) for b in batches]))
        unlabelled = write_rows(folder / "u.jsonl", [{"text": t} for t, _ in order])
        assert load_texts(unlabelled, limit=limit, seed=seed).texts == samples.texts
    assert results[0] == results[1]
    assert len(results[0][0].texts) == min(limit or len(rows), len(rows))
    assert results[0][0].total == len(rows)
    keys = [key for batch_keys, _, _ in results[0][1] for key in batch_keys]
    assert len(set(keys)) == len(keys)


def test_seed_decides_the_selection_and_limits_nest(tmp_path):
    path = write_rows(tmp_path / "d.jsonl", [{"text": f"row {i}"} for i in range(50)])
    ten = load_texts(path, limit=10, seed=0)
    assert ten.texts == load_texts(path, limit=20, seed=0).texts[:10]
    assert set(ten.texts) != set(load_texts(path, limit=10, seed=1).texts)
    assert ten.sha256 != load_texts(path, limit=11, seed=0).sha256
    assert load_texts(path, seed=0).sha256 == load_texts(path, seed=1).sha256
