"""What is known of a model's tokens, and how merged sequences are compared with whole ones."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers.models import make_pixels
from helpers.tokens import tokens_kept

from optin_cli.checkpoints.checks import require_tokens
from optin_cli.data.batch import Batch
from optin_cli.errors import ArchitectureError
from optin_cli.model.forward import observe
from optin_cli.model.masking import masked
from optin_cli.model.modeling_optin import (
    merge_between,
)
from optin_cli.model.tokens import Merged, tokens_of

# Models


@pytest.mark.parametrize(("family", "special"), [("timm-dinov2", 5), ("deit", 2), ("timm-deit", 2), ("vit", 1)])
def test_special_tokens_are_counted(image_checkpoint, family, special):
    assert tokens_of(image_checkpoint(family).structure).special == special


def test_what_merges_nothing_loses_nothing(image_checkpoint):
    """Of a model whose patches are all alike the trajectory stays as it is, whatever merges."""
    checkpoint = image_checkpoint("timm-vit")
    model = copy.deepcopy(checkpoint.model)
    model.pos_embed.zero_()
    inputs = {name: tensor * 0 for name, tensor in make_pixels(model, 2).items()}
    batch = Batch(inputs, None, ("a", "b"))
    whole = observe(model, checkpoint.structure, batch)
    with masked(model, checkpoint.structure, tokens_kept(checkpoint, 4, 3)):
        merged = observe(model, checkpoint.structure, batch)
    assert [f.shape for f in merged.features] == [f.shape for f in whole.features]
    for mine, theirs in zip([*merged.features, *merged.outputs], [*whole.features, *whole.outputs], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_merged_sequences_are_compared_with_means_of_their_tokens(image_checkpoint):
    """What a merged sequence is compared with: the mean of the tokens that merged."""
    checkpoint = image_checkpoint("timm-vit")
    hidden, other = torch.randn(2, 10, 4), torch.randn(2, 7, 4)
    source = torch.tensor([[0, 1, 1, 2, 3, 4, 4, 4, 5, 6]] * 2)
    sizes = torch.tensor([[1.0, 2, 1, 1, 3, 1, 1]] * 2)
    merged = Merged(sizes, source)
    found = merged.average(hidden)
    torch.testing.assert_close(found[:, 1], hidden[:, 1:3].mean(1))
    torch.testing.assert_close(found[:, 4], hidden[:, 5:8].mean(1))
    torch.testing.assert_close(found[:, 0], hidden[:, 0])
    assert torch.equal(merged.spread(other)[:, 7], other[:, 4])
    with pytest.raises(ValueError, match="cannot merge into others"):
        handles = merge_between(checkpoint.model, list(checkpoint.model.blocks)[:1], [9], 1, "attn_mask")
        checkpoint.model.blocks[0](hidden.repeat(1, 1, 8))
    for handle in handles:
        handle.remove()


# What is refused


def test_outputs_of_every_token_forbid_merging(image_checkpoint):
    checkpoint = image_checkpoint("vit")
    tokens = replace(tokens_of(checkpoint.structure), dense=("last_hidden_state",))
    with pytest.raises(ArchitectureError, match="last_hidden_state says something of every token"):
        require_tokens(replace(checkpoint, structure=replace(checkpoint.structure, kinds=(tokens,))))
