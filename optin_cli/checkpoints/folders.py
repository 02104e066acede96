"""Checkpoint folders: their weights files, name and hash, and fetching one of the hub. Imports no torch."""

from pathlib import Path

from optin_cli.artifacts.base import Source, parse
from optin_cli.artifacts.manifest import Manifest
from optin_cli.checkpoints.libraries.registry import CONFIG
from optin_cli.checkpoints.sentences import encoder_folder
from optin_cli.errors import ArtifactError, CheckpointError
from optin_cli.files import load_json, read_bytes, sha256_of

MANIFEST = "optin.json"
CARD = "README.md"
TORCH_SUFFIXES = (".pth.tar", ".pt.tar", ".pt", ".pth", ".ckpt", ".bin")
FILE_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
"""Endings of weights files; longer ones come before those that end them."""
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.safetensors.index.json", "[1-9]_*/*"]
"""Patterns; the last is of the modules of sentence-transformers behind the transformer."""


def file_stem(path: Path) -> str:
    """Name of a weights file without its ending."""
    ending = next((suffix for suffix in FILE_SUFFIXES if path.name.endswith(suffix)), path.suffix)
    return path.name.removesuffix(ending) or path.name


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights: one, or the shards an index names (CheckpointError if there are none).

    Of a folder of sentence-transformers, those of its transformer.
    """
    folder = encoder_folder(folder)
    for name in FOLDER_FILES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            return [folder / shard for shard in _shards(index)]
    found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
    raise CheckpointError(
        f"{folder} holds no weights: found {found}; expected {' or '.join(FOLDER_FILES)}.",
        hint="Save the model with save_pretrained, or pass the weights file itself with --arch CONFIG_FOLDER.",
    )


def _shards(index: Path) -> list[str]:
    """Names of the files that an index lists, which lie beside it."""
    try:
        shards = sorted(set(load_json(index, foreign=True)["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not a valid weight index: {error}.") from error
    for shard in shards:
        if not isinstance(shard, str) or shard in ("", ".", "..") or Path(shard).name != shard:
            raise CheckpointError(f"{index} names {shard!r}, which is not the name of a file beside it.")
    return shards


def weight_hashes(folder: Path) -> dict[str, str]:
    """Sha256 of each file of a folder's weights, by its place in the folder."""
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in weight_files(folder)}


def require_recorded(folder: Path) -> None:
    """Refuse a folder that has a record of other weights than its own (ArtifactError); one without a record passes."""
    record = folder / MANIFEST
    if not record.is_file():
        return
    recorded = parse(Manifest, read_bytes(record, "manifest"), str(record)).weights
    if recorded and recorded != weight_hashes(folder):
        raise ArtifactError(
            f"The weights in {folder} are not those that its {MANIFEST} certifies: their sha256 differs.",
            hint=f"They were cut short, changed or trained further. Prune again, or remove {MANIFEST}.",
        )


def folder_source(folder: Path) -> Source:
    """Name and hash that loading a folder would give, without loading it (CheckpointError if a part is missing)."""
    parts = [encoder_folder(folder) / CONFIG, *weight_files(folder)]
    if gone := [path.name for path in parts if not path.is_file()]:
        raise CheckpointError(f"{folder} is not a whole checkpoint: {gone[0]} is missing.")
    require_recorded(folder)
    return Source(name=folder.resolve().name, sha256=sha256_of(*parts))


def download(name: str) -> Path:
    """Fetch config, tokenizer and weights of a model of the hub (CheckpointError if neither cache nor hub has it)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(FILE_SUFFIXES):
        raise CheckpointError(f"{name} does not exist.", hint="Expected a checkpoint folder or a state-dict file.")
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name} does not exist here, and no model hub could supply it.",
            hint="Expected a checkpoint folder, a state-dict file, or the id of a model on a reachable hub "
            "(or in its local cache).",
        ) from error
