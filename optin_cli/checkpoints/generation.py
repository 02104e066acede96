"""Whether a saved causal model generates the same tokens with its KV cache as without.

The reloaded folder continues random prompts greedily with the cache, step by step. Without it, one pass over the same
tokens gives the logits of every step. Where both agree within the tolerance, greedy generation without the cache makes
the same tokens, except where its best logits are no further apart than twice that: a tie, which rounding decides.
Steps behind a tie count like any other, since both see the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from optin_cli.artifacts.manifest import Generation
from optin_cli.checkpoints.batching import Inputs
from optin_cli.checkpoints.verify import DEFECT, largest_difference, run_probe, tolerance_for
from optin_cli.errors import CertificateError

PROMPTS, PROMPT_TOKENS, TOKENS = 2, 8, 32
"""Prompts, tokens of each, and tokens that are generated."""
LOGITS = "logits"
GENERATED, CACHED, UNCACHED = "generated", "cached", "uncached"
CODE = """
class Generating(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, **inputs):
        prompts = inputs["input_ids"][:{prompts}, :{length}]
        self.inner.generation_config = transformers.GenerationConfig(pad_token_id=0)
        try:
            found = self.inner.generate(
                prompts, attention_mask=torch.ones_like(prompts), max_new_tokens={tokens}, do_sample=False,
                use_cache=True, output_logits=True, return_dict_in_generate=True,
            )
        except Exception as error:
            raise RuntimeError(f"it loads, but cannot generate with its KV cache: {{error!r}}") from None
        whole = self.inner(input_ids=found.sequences[:, :-1], use_cache=False).logits
        made = found.sequences[:, {length}:]
        cached = torch.stack(found.logits, dim=1)
        return {{**self.inner(**inputs), "generated": made, "cached": cached, "uncached": whole[:, {length} - 1 :]}}
model = Generating(model)
"""


@dataclass(frozen=True)
class Generating:
    """How much a certificate generates: prompts of `length` tokens, the first of the probe's, and `tokens` more."""

    length: int
    tokens: int

    @property
    def names(self) -> list[str]:
        """What the fresh process puts out besides the model's outputs."""
        return [GENERATED, CACHED, UNCACHED]

    def code(self) -> str:
        """Code that follows that which loads a folder, and makes its `model` put those out."""
        return CODE.format(prompts=PROMPTS, length=self.length, tokens=self.tokens)


def plan_generation(model: nn.Module, probe: Inputs, most: int | None) -> Generating | None:
    """How much to generate; None where the model is not causal, or its positions hold no more than a prompt.

    Args:
        most: tokens that its positions hold, None for any number.
    """
    length = min(PROMPT_TOKENS, probe["input_ids"].shape[1])
    tokens = TOKENS if most is None else min(TOKENS, most - length)
    prompts = {name: tensor[:PROMPTS, :length] for name, tensor in probe.items()}
    shorter = {name: tensor[:, :-1] for name, tensor in prompts.items()}
    if tokens < 1 or length < 2:
        return None
    whole, part = (run_probe(model, inputs, [LOGITS]) for inputs in (prompts, shorter))
    causal = largest_difference(part, {LOGITS: whole[LOGITS][:, :-1]}) <= tolerance_for(whole)
    return Generating(length, tokens) if causal else None


def judge_generation(found: Mapping[str, torch.Tensor]) -> Generation:
    """What the certificate says of generated tokens (CertificateError if the cache changes what is generated).

    Args:
        found: generated tokens (prompts, tokens); cached and uncached logits of each (prompts, tokens, vocabulary).
    """
    generated, cached, uncached = (found[name] for name in (GENERATED, CACHED, UNCACHED))
    tolerance = tolerance_for({UNCACHED: uncached})
    steps = (cached - uncached).abs().amax(dim=(0, 2))
    if not bool((steps <= tolerance).all()):
        step = int((steps <= tolerance).int().argmin())
        raise CertificateError(
            f"The reloaded folder generates otherwise with its KV cache than without: at token {step + 1} of "
            f"{len(steps)} the logits differ by {float(steps[step]):.3g}, more than the tolerance of {tolerance:.3g}. "
            "Nothing was written.",
            hint=DEFECT,
        )
    return Generation(
        prompts=len(generated),
        tokens=len(steps),
        difference=float(steps.max()),
        tolerance=tolerance,
        ties=int((uncached.argmax(dim=-1) != generated).sum()),
    )
