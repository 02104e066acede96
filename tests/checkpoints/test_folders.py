"""Checkpoint folders whose weight index is invalid."""

import pytest

from optin_cli.checkpoints.folders import weight_files
from optin_cli.errors import CheckpointError


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}'])
def test_an_invalid_weight_index_is_refused(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="not a valid weight index"):
        weight_files(tmp_path)


def test_an_index_of_anything_but_names_is_refused(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')
    with pytest.raises(CheckpointError, match="names 1, which is not the name of a file beside it"):
        weight_files(tmp_path)
