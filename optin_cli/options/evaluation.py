"""The constants of scoring, refit, evaluation and sweeps, with their defaults. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from optin_cli.errors import UsageError

DEFAULT_SEQ_LEN = 128
"""Tokens per sequence that costs are stated for where no other number is asked for."""


@dataclass(frozen=True)
class AnswerOptions:
    """Constants of question answering.

    doc_stride: tokens that consecutive windows of a context share. max_answer: most tokens of an answer.
    no_answer_threshold: how far "no answer" must exceed the best answer, where a task allows it.
    """

    doc_stride: int = 128
    max_answer: int = 30
    no_answer_threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.doc_stride < 0 or self.max_answer < 1:
            raise UsageError(
                f"doc_stride is {self.doc_stride} and max_answer {self.max_answer}; expected at least 0 and 1."
            )


@dataclass(frozen=True)
class EvalOptions:
    """Every constant of an evaluation.

    seq_len: length of text that costs are stated for, None for 128 tokens or what the model holds. latency_length:
    length of text that latency is measured at, at most what the model holds. latency_runs: 0 measures no latency.
    samples: how many to evaluate on, None for all; seed: which ones.
    """

    batch_size: int = 32
    max_length: int | None = None
    seq_len: int | None = None
    latency_batch: int = 32
    latency_length: int = 64
    latency_runs: int = 20
    latency_warmup: int = 3
    answers: AnswerOptions = AnswerOptions()
    samples: int | None = None
    seed: int = 0

    def recorded(self) -> dict[str, Any]:
        """The constants that a sweep records: all but which samples were taken, which it records by their hash."""
        return {key: value for key, value in asdict(self).items() if key not in ("samples", "seed")}
