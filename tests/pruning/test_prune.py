"""A pruned folder computes what the masked model computes, with and without optin."""

import pytest
import torch
import transformers
from helpers.running import python
from safetensors.torch import load_file, save_file

import optin_cli
from optin_cli.artifacts.base import parse
from optin_cli.artifacts.mask import Mask
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.model.masking import masked


def probe():
    generator = torch.Generator().manual_seed(3)
    return {"input_ids": torch.randint(5, 90, (2, 12), generator=generator), "attention_mask": torch.ones(2, 12).long()}


@torch.no_grad()
def test_load_gives_the_masked_model(made):
    mask = parse(Mask, made.mask.read_text(), "mask")
    original = load_checkpoint(made.bert)
    with masked(original.model, original.structure, {name: g.kept for name, g in mask.groups.items()}):
        expected = original.model(**probe()).logits
    loaded = optin_cli.load(made.pruned).model
    assert isinstance(loaded, torch.nn.Module) and not loaded.training
    torch.testing.assert_close(loaded(**probe()).logits, expected, rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in original.model.parameters())
    assert not torch.allclose(original.model(**probe()).logits, expected, rtol=1e-3)


def test_the_pruned_folder_needs_no_optin(here, made):
    code = """
import sys
sys.modules["optin_cli"] = None
import torch, transformers
from safetensors.torch import load_file, save_file
folder, probe, out = sys.argv[1:]
results = {}
for name, key in (("AutoModelForSequenceClassification", "logits"), ("AutoModel", "last_hidden_state")):
    model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        results[name] = model(**load_file(probe))[key].contiguous()
transformers.AutoTokenizer.from_pretrained(folder)
save_file(results, out)
"""
    save_file(probe(), "probe.safetensors")
    result = python(
        code, made.pruned, "probe.safetensors", "out.safetensors", cwd=here, HF_MODULES_CACHE=str(here / "m")
    )
    assert result.returncode == 0, result.stderr
    found = load_file("out.safetensors")
    loaded = optin_cli.load(made.pruned).model
    with torch.no_grad():
        torch.testing.assert_close(found["AutoModelForSequenceClassification"], loaded(**probe()).logits)
        torch.testing.assert_close(found["AutoModel"], loaded.bert(**probe()).last_hidden_state)


def test_stock_transformers_refuses_the_pruned_folder(made):
    """Without remote code there is an error, never a model with random weights."""
    transformers.logging.set_verbosity_error()
    with pytest.raises((RuntimeError, ValueError)):
        transformers.BertForSequenceClassification.from_pretrained(made.pruned)
