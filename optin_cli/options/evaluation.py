"""Options of evaluation."""

from dataclasses import dataclass, replace
from pathlib import Path

from optin_cli.options.common import (
    BATCH_SIZE,
    DEFAULT_LENGTH,
    DEFAULT_MASK_EVERY,
    MAX_LENGTH,
    MOST_LENGTH,
    MOST_ROWS,
    MOST_RUNS,
    SEED,
    SEQ_LEN,
)
from optin_cli.options.declare import DATA, OUTPUT, TIMING, Checked, nested, offer, option, shared
from optin_cli.options.generation import GenerationOptions

DEFAULT_QUESTION_WINDOW = 384
"""Tokens of a window of question and context where no other number is asked for."""


@dataclass(frozen=True)
class AnswerOptions(Checked):
    """Options of question answering.

    doc_stride: tokens that consecutive windows of a context share. max_answer: most tokens of an answer.
    no_answer_threshold: how far "no answer" must exceed the best answer, where a task allows it.
    """

    doc_stride: int = option(128, "--doc-stride", "Tokens that two windows of a question's long context share.", low=0)
    max_answer: int = option(30, low=1)
    no_answer_threshold: float = option(
        0.0, "--no-answer-threshold", "How far the score of no answer must exceed the best answer's (squad_v2)."
    )


@dataclass(frozen=True)
class EvalOptions(Checked):
    """Options of an evaluation.

    max_length: most tokens of a text; None means 128, or what the model holds. seq_len: length that costs are stated
    for, None means 128, or 512 for models that continue a text, whose windows have as many tokens; latency_length:
    length that is timed. Both are lowered to what the model holds, and images have neither. stride: tokens between the
    beginnings of two windows, None for windows side by side. latency_runs: 0 measures no latency. samples: how many to
    evaluate on, None for all; seed selects them. mask_every: of so many tokens one is masked at once, to be filled in.
    num_fewshot: examples in each prompt of a task of the lm-evaluation-harness, None for the task's own number.
    ignore_index: ids of pixels of label maps, or of words, that do not count; None for what the task or checkpoint
    says. pictures: folder for pictures of segmented images, of the first `picture_count` samples.
    """

    batch_size: int = shared(32, BATCH_SIZE)
    max_length: int | None = shared(
        None,
        replace(MAX_LENGTH, unset=f"{DEFAULT_LENGTH}; a window of questions: {DEFAULT_QUESTION_WINDOW}"),
    )
    seq_len: int | None = shared(None, SEQ_LEN)
    stride: int | None = option(
        None,
        "--stride",
        "Decoders: tokens between the beginnings of two windows; fewer give each token more context.",
        metavar="N",
        low=1,
        unset="windows side by side",
    )
    latency_batch: int = option(
        32, "--latency-batch", "Batch size that time is measured at.", low=1, most=MOST_ROWS, panel=TIMING
    )
    latency_length: int = option(
        64, "--latency-length", "Sequence length that time is measured at.", low=1, most=MOST_LENGTH, panel=TIMING
    )
    latency_runs: int = option(
        20, "--latency-runs", "Timed runs, of which the median counts; 0 skips.", low=0, most=MOST_RUNS, panel=TIMING
    )
    latency_warmup: int = option(3, low=0)
    generation: GenerationOptions = nested(GenerationOptions(), offer())
    answers: AnswerOptions = nested(AnswerOptions(), offer())
    samples: int | None = option(
        None, "--samples", "Evaluate on this many samples.", low=1, recorded="", panel=DATA, unset="all"
    )
    seed: int = shared(0, replace(SEED, recorded=""))
    mask_every: int = option(
        DEFAULT_MASK_EVERY,
        "--mask-every",
        "Masked language models: one token in N is masked at once, each in its turn; a large N masks one alone.",
        metavar="N",
        low=1,
    )
    num_fewshot: int | None = option(
        None, "--num-fewshot", "Examples in each prompt, with --task lm-eval:NAME.", low=0, unset="the task's"
    )
    ignore_index: tuple[int, ...] | None = option(
        None,
        "--ignore-index",
        "Ids of pixels or words that do not count.",
        metavar="ID[,…]",
        low=0,
        unset="the task's or checkpoint's, and 255; -100 for words",
    )
    pictures: Path | None = option(
        None,
        "--pictures",
        "Segmentation: write pictures of labels and predictions.",
        metavar="DIR",
        recorded="",
        panel=OUTPUT,
    )
    picture_count: int = option(5, "--picture-count", "Images to draw.", low=1, recorded="", panel=OUTPUT)
