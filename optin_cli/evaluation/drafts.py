"""Measure a model as the draft of another in greedy speculative decoding, by transformers' assisted generation.

The draft proposes k tokens at a time, one forward pass each. One pass of the original over them gives its own choices:
those of the draft are kept up to the first that differs, where the original's own follows. The text is the original's;
only the time changes. Leviathan et al. 2022 (arXiv 2211.17192), section 2, at temperature 0. Both continue every prompt
by the same number of tokens, an end token notwithstanding.
"""

import contextlib
import copy
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.generation import Draft, Quartiles
from optin_cli.checkpoints.batching import BatchOptions
from optin_cli.checkpoints.checkpoint import Checkpoint, as_checkpoint
from optin_cli.checkpoints.checks import choose_task
from optin_cli.checkpoints.text_input import TextInput
from optin_cli.data.spec import DataSpec
from optin_cli.errors import UsageError
from optin_cli.evaluation.generation import held_lengths, require_generating
from optin_cli.model.forward import hooks
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.generation import GenerationOptions
from optin_cli.profiling.decoding import Marks, generate
from optin_cli.profiling.devices import describe_device
from optin_cli.profiling.timing import evaluating
from optin_cli.progress import SILENT, Progress

FLAG = "--draft-for"
Inputs = Mapping[str, torch.Tensor]


def evaluate_draft(
    draft: Checkpoint | str | Path,
    original: Checkpoint | str | Path,
    data: DataSpec | str | Path,
    *,
    options: EvalOptions | None = None,
    progress: Progress = SILENT,
) -> Draft:
    """Continue prompts from `data` by the original with the draft and by the original alone, in turn.

    Raises:
        UsageError: a model that does not generate text, or two tokenizers. DataError: no texts to begin with.
    """
    draft, original = as_checkpoint(draft), as_checkpoint(original)
    require_draft(draft, original)
    options = options or EvalOptions()
    asked = held_lengths(options.generation, [draft, original])
    prompts = beginnings(original, DataSpec.of(data), replace(options, generation=asked), progress)
    return _recorded(original, prompts, _continued(draft, original, prompts, asked, progress), asked)


def with_draft(result: Evaluation, original: Checkpoint, drafted: Draft) -> Evaluation:
    """The evaluation of a model with what it is worth as a draft of the original."""
    inputs = {**result.inputs, "draft_for": original.source}
    return result.model_copy(update={"draft": drafted, "inputs": inputs})


def require_draft(draft: Checkpoint, original: Checkpoint) -> None:
    """Refuse a pair of which one does not generate text, or whose token ids mean different things (UsageError)."""
    for one in (draft, original):
        require_generating(one, FLAG)
    mine, theirs = (_tokens(one) for one in (draft, original))
    if mine != theirs:
        other = min(mine.items() ^ theirs.items(), key=lambda pair: (pair[1], pair[0]))[0]
        ids = " and ".join("none" if own.get(other) is None else str(own[other]) for own in (mine, theirs))
        raise UsageError(
            f"{draft.name} cannot draft for {original.name}, whose tokenizer is another: {len(mine):,} tokens and "
            f"{len(theirs):,}, and the id of {other!r} is {ids}.",
            hint="Pass the model that the draft was pruned from, or another with its tokenizer.",
        )
    rows = draft.input.vocabulary, original.input.vocabulary
    if rows[0] != rows[1]:
        raise UsageError(
            f"{draft.name} cannot draft for {original.name}: it has logits for {rows[0]:,} tokens, the other for "
            f"{rows[1]:,}.",
            hint="Resize both where they were made: model.resize_token_embeddings(N).",
        )


def _tokens(checkpoint: Checkpoint) -> dict[str, int]:
    takes = checkpoint.input
    found: dict[str, int] = takes.tokenizer().get_vocab() if isinstance(takes, TextInput) else {}
    return found


def beginnings(original: Checkpoint, spec: DataSpec, options: EvalOptions, progress: Progress) -> list[Inputs]:
    """The beginnings of texts as the original reads them, (1, tokens) each."""
    length = options.generation.prompt_length
    few = replace(options, samples=options.generation.draft_prompts, max_length=length, stride=None)
    task = choose_task(original, None, spec)
    samples = original.input.load_samples(spec.evaluating(few, task), progress)
    batches = original.input.batches(samples, BatchOptions(1, length, None, labelled=False))
    return [batch.inputs for batch in batches]


@dataclass(frozen=True)
class _Continued:
    """One prompt continued: seconds with the draft and by the original alone, and whether the two texts are equal.

    passes: of the original with the draft. drafted, accepted: proposed tokens, and those that the original chose too.
    """

    seconds: float
    alone_seconds: float
    passes: int
    drafted: int
    accepted: int
    same: bool


def _continued(
    draft: Checkpoint, original: Checkpoint, prompts: Sequence[Inputs], asked: GenerationOptions, progress: Progress
) -> list[_Continued]:
    found = []
    with evaluating(draft.model), evaluating(original.model), _proposing(draft.model, asked.draft_tokens):
        for _ in range(asked.decode_warmup):
            _continue(draft.model, original.model, prompts[0], asked.new_tokens)
        for number, prompt in enumerate(prompts):
            progress.update(number, len(prompts), f"continuing with drafts of {asked.draft_tokens} tokens")
            found.append(_continue(draft.model, original.model, prompt, asked.new_tokens))
    return found


@contextlib.contextmanager
def _proposing(draft: Any, count: int) -> Iterator[None]:
    """Let a model propose exactly so many tokens at a time, however sure it is of them."""
    own = draft.generation_config
    logger = logging.getLogger("transformers.generation.utils")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of how its own assisted generation calls the draft
    draft.generation_config = copy.deepcopy(own)
    draft.generation_config.num_assistant_tokens = count
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    try:
        yield
    finally:
        draft.generation_config = own
        logger.setLevel(level)


def _continue(draft: Any, original: Any, prompt: Inputs, count: int) -> _Continued:
    """Continue one prompt by the original alone, then with the draft."""
    calls: list[None] = []
    marks = Marks()
    begin = time.perf_counter()
    alone = generate(original, prompt, Marks(), count)
    between = time.perf_counter()
    with hooks() as hook:
        hook.after(draft, lambda *_: calls.append(None))
        both = generate(original, prompt, marks, count, assistant_model=draft)
        end = time.perf_counter()
    passes = len(marks.counts) - 1  # the prompt arrives first
    return _Continued(
        seconds=end - between,
        alone_seconds=between - begin,
        passes=passes,
        drafted=len(calls) - (passes if draft is original else 0),
        accepted=count - passes,
        same=torch.equal(alone.sequences, both.sequences),
    )


def _recorded(
    original: Checkpoint, prompts: Sequence[Inputs], found: Sequence[_Continued], asked: GenerationOptions
) -> Draft:
    drafted, accepted = sum(one.drafted for one in found), sum(one.accepted for one in found)
    new = asked.new_tokens
    return Draft(
        original=original.name,
        draft_tokens=asked.draft_tokens,
        prompts=len(prompts),
        prompt_tokens=max(prompt["input_ids"].shape[1] for prompt in prompts),
        new_tokens=new,
        passes=sum(one.passes for one in found),
        drafted=drafted,
        accepted=accepted,
        acceptance=accepted / drafted if drafted else None,
        same=sum(one.same for one in found),
        device=describe_device(original.device),
        threads=torch.get_num_threads(),
        tokens_per_second=Quartiles.of([new / one.seconds for one in found]),
        alone_per_second=Quartiles.of([new / one.alone_seconds for one in found]),
        speedup=sum(one.alone_seconds for one in found) / sum(one.seconds for one in found),
    )
