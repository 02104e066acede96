"""Options of what is measured while a model generates text."""

from dataclasses import dataclass
from typing import ClassVar

from optin_cli.options.declare import TIMING, Checked, option

DEFAULT_DECODE_RUNS = 5
"""Timed generations where no other number is asked for."""


@dataclass(frozen=True)
class GenerationOptions(Checked):
    """Options of measuring greedy generation with a cache of keys and values.

    decode_runs: 0 measures no speed; None means 5 where latency is measured, 0 where it is not. decode_batch: batch
    sizes that are timed. prompt_length, new_tokens: lowered where the model's positions do not hold both. draft_tokens:
    tokens that a draft proposes at once. draft_prompts: texts that are continued to measure a draft.
    """

    panel: ClassVar[str] = TIMING
    decode_runs: int | None = option(
        None,
        "--decode-runs",
        "Models that generate: timed generations; 0 skips.",
        metavar="N",
        unset=f"{DEFAULT_DECODE_RUNS}, or 0 with --latency-runs 0",
        low=0,
        recorded="",
    )
    decode_warmup: int = option(1, low=0, recorded="")
    decode_batch: tuple[int, ...] = option(
        (1, 8), "--decode-batch", "Batch sizes that generation is timed at.", metavar="N[,…]", low=1, recorded=""
    )
    prompt_length: int = option(
        128, "--prompt-length", "Tokens of the prompts that are continued.", metavar="N", low=1, recorded=""
    )
    new_tokens: int = option(
        32, "--new-tokens", "Tokens that are generated after each prompt.", metavar="N", low=2, recorded=""
    )
    draft_tokens: int = option(
        5, "--draft-tokens", "Tokens that a draft proposes at once, with --draft-for.", metavar="K", low=1, recorded=""
    )
    draft_prompts: int = option(
        16, "--draft-prompts", "Texts that are continued, with --draft-for.", metavar="N", low=1, recorded=""
    )

    def runs(self, latency_runs: int) -> int:
        """Timed generations beside so many timed forward passes."""
        return self.decode_runs if self.decode_runs is not None else DEFAULT_DECODE_RUNS * (latency_runs > 0)
