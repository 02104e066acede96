"""Text datasets, saved to disk and read."""

from pathlib import Path

from optin_cli.data.spec import DataSpec
from optin_cli.data.text.samples import load_samples

PAIR = [{"text": "good film", "label": 1}, {"text": "bad film", "label": 0}]


def save_texts(path: Path, rows, splits=()):
    import datasets

    names = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    data = datasets.Dataset.from_list(rows, features=features)
    (datasets.DatasetDict(dict.fromkeys(splits, data)) if splits else data).save_to_disk(str(path))


def load_texts(source, *, split="evaluation", task=None, data=None, **options):
    source = None if source is None else str(source)
    return load_samples(DataSpec(source, data, known=task, role=split, **options))


def as_pairs(samples):
    """Texts with their labels, in an order of their own."""
    return sorted(zip(samples.texts, samples.labels or [None] * len(samples.texts), strict=True))
