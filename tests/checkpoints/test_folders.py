"""Checkpoint folders whose weight index is invalid."""

import pytest

from optin_cli.checkpoints.folders import weight_files
from optin_cli.errors import CheckpointError


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_an_invalid_weight_index_is_refused(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="not a valid weight index"):
        weight_files(tmp_path)
