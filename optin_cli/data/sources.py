"""Open Parquet files, saved datasets and datasets of the Hub by the `datasets` library, and find splits."""

import contextlib
import glob
import logging
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from optin_cli.data.text.formats import RUNNING, TEXT_READERS
from optin_cli.errors import DataError, first_line
from optin_cli.tasks.schema import Role, Task

FALLBACKS: dict[Role, tuple[str, ...]] = {"calibration": ("train",), "evaluation": ("validation", "test")}
WHOLE = "all"
PARQUET = ".parquet"
SUFFIXES = (*TEXT_READERS, PARQUET)


def is_saved(path: Path) -> bool:
    """Whether a folder is one that `datasets` saved."""
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def open_dataset(task: Task, role: Role) -> tuple[str, Any]:
    """The split of a task's dataset that plays the role, from the cache or the Hub (DataError if neither has it)."""
    import datasets

    if task.dataset is None:
        raise DataError(
            f"The task {task.name} has no data of its own.", hint="Pass a local file or folder with --data PATH."
        )
    split: str = getattr(task.splits, role)
    found = task.dataset
    name = "/".join(filter(None, (found.path, found.config or found.folder)))
    local = "a .jsonl, .csv, .tsv or .parquet file, or a folder" if task.input == "text" else "a folder of images"
    try:
        with quiet_datasets():
            return split, datasets.load_dataset(found.path, found.config, split=split, **found.place(split))
    except Exception as error:
        raise DataError(
            f"The dataset {name} of task {task.name} is neither in the local cache nor reachable: {first_line(error)}",
            hint=f"Pass a local copy with --data PATH ({local}).",
        ) from error


def open_saved(path: Path, wanted: Sequence[str]) -> tuple[str, Any]:
    """The first wanted split of a saved dataset, the whole where it has none (DataError if unreadable or of others)."""
    import datasets

    try:
        with quiet_datasets():
            data = datasets.load_from_disk(str(path))
    except Exception as error:
        raise DataError(f"{path} cannot be read as a saved dataset: {first_line(error)}") from error
    if not isinstance(data, datasets.DatasetDict):
        return WHOLE, data
    split = next((s for s in wanted if s in data), None)
    if split is None:
        raise DataError(f"The saved dataset {path} has splits {', '.join(data)}; expected {' or '.join(wanted)}.")
    return split, data[split]


def open_parquet(path: Path, wanted: Sequence[str]) -> tuple[str, Any]:
    """A Parquet file, or a folder's first wanted split of them, in memory (DataError if unreadable or of others)."""
    import datasets

    splits = {WHOLE: [path]}
    if path.is_dir():
        splits = {s: [p for p in paths if p.suffix.lower() == PARQUET] for s, paths in split_files(path).items()}
    split = WHOLE if path.is_file() else next((s for s in wanted if splits.get(s)), None)
    if split is None:
        raise DataError(f"The folder {path} has splits {', '.join(splits)}; expected {' or '.join(wanted)}.")
    try:
        with quiet_datasets(), tempfile.TemporaryDirectory() as cache:
            files = [glob.escape(str(p.resolve())) for p in splits[split]]
            return split, datasets.load_dataset(
                "parquet", data_files=files, split="train", cache_dir=cache, keep_in_memory=True
            )
    except Exception as error:
        raise DataError(f"{path} cannot be read as Parquet files: {first_line(error)}") from error


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Silence progress bars and logs of `datasets` and its downloads, and restore them after."""
    import datasets
    from huggingface_hub import utils as hub

    bars = [library for library in (datasets, hub) if not library.are_progress_bars_disabled()]
    logger = logging.getLogger("datasets")
    level = logger.level
    try:
        for library in bars:
            library.disable_progress_bars()
        logger.setLevel(logging.CRITICAL)
        yield
    finally:
        logger.setLevel(level)
        for library in bars:
            library.enable_progress_bars()


def split_files(folder: Path) -> dict[str, list[Path]]:
    """Data files of a folder by split: `train.jsonl`, shards (`train-00000-of-00002.parquet`), `wiki.test.raw`."""
    splits: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            name = path.stem.rpartition(".")[2] if path.suffix.lower() in RUNNING else path.stem
            splits.setdefault(re.sub(r"-\d+-of-\d+$", "", name), []).append(path)
    return splits
