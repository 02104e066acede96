"""Selection of samples depends on content and seed alone."""

import json
from pathlib import Path

import pytest
from helpers.tokenizers import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from optin_cli.data.spec import DataSpec
from optin_cli.data.text.samples import load_samples
from optin_cli.data.text.tokenize import make_batches


def write_lines(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(source, *, split="evaluation", task=None, data=None, **options):
    source = None if source is None else str(source)
    return load_samples(DataSpec(source, data, known=task, role=split, **options))


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
        path = write_lines(folder / "d.jsonl", [{"text": t, "label": y} for t, y in order])
        samples = load(path, limit=limit, seed=seed)
        batches = make_batches(samples, tokenizer, batch_size=3, max_length=8, label_map={0: 0, 1: 1})
        results.append((samples, [(b.keys, b.inputs["input_ids"].tolist(), b.labels.tolist()) for b in batches]))
        unlabelled = write_lines(folder / "u.jsonl", [{"text": t} for t, _ in order])
        assert load(unlabelled, limit=limit, seed=seed).texts == samples.texts
    assert results[0] == results[1]
    assert len(results[0][0].texts) == min(limit or len(rows), len(rows))
    assert results[0][0].total == len(rows)
    keys = [key for batch_keys, _, _ in results[0][1] for key in batch_keys]
    assert len(set(keys)) == len(keys)


def test_seed_decides_the_selection_and_limits_nest(tmp_path):
    path = write_lines(tmp_path / "d.jsonl", [{"text": f"row {i}"} for i in range(50)])
    ten = load(path, limit=10, seed=0)
    assert ten.texts == load(path, limit=20, seed=0).texts[:10]
    assert set(ten.texts) != set(load(path, limit=10, seed=1).texts)
    assert ten.sha256 != load(path, limit=11, seed=0).sha256
    assert load(path, seed=0).sha256 == load(path, seed=1).sha256
