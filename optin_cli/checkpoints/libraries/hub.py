"""Fetch a model of the hub into the local cache."""

from pathlib import Path

from optin_cli.checkpoints.folders import FILE_SUFFIXES
from optin_cli.errors import CheckpointError

PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors", "*.safetensors.index.json"]


def download(name: str) -> Path:
    """Fetch config, tokenizer and weights.

    Raises:
        CheckpointError: there is no such model, or no hub within reach.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    local = CheckpointError(
        f"{name} does not exist here, and no model hub could supply it.",
        hint="Expected a checkpoint folder, a state-dict file, or the id of a model on a reachable hub "
        "(or in its local cache).",
    )
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in FILE_SUFFIXES:
        raise CheckpointError(f"{name} does not exist.", hint="Expected a checkpoint folder or a state-dict file.")
    try:
        return Path(snapshot_download(name, allow_patterns=PATTERNS))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise local from error
