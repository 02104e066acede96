"""The constants of scoring, refit, evaluation and sweeps, with their defaults. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from optin_cli.errors import UsageError


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
    """Every constant of an evaluation. latency_runs = 0 measures no latency. Lengths are those of texts."""

    batch_size: int = 32
    max_length: int | None = None
    seq_len: int | None = 128
    latency_batch: int = 32
    latency_length: int = 64
    latency_runs: int = 20
    latency_warmup: int = 3
    answers: AnswerOptions = AnswerOptions()
