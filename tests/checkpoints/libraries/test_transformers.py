"""Image checkpoints of transformers without an image processor."""

import pytest
from helpers.models import SIDE, save_images

from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.errors import CheckpointError


def test_without_an_image_processor_images_cannot_be_prepared(tmp_path):
    path = save_images(tmp_path / "tiny", "vit")
    (path / "preprocessor_config.json").unlink()
    checkpoint = load_checkpoint(path)
    assert checkpoint.blueprint.image.shape == (3, SIDE, SIDE)
    with pytest.raises(CheckpointError, match="no image processor"):
        checkpoint.input.preprocess()
