"""Speed of generation in an evaluation: which models are timed, on prompts that they hold."""

from collections.abc import Sequence
from dataclasses import replace

from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.checkpoints.inputs import random_inputs
from optin_cli.checkpoints.text_input import TextInput
from optin_cli.errors import UsageError
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.generation import GenerationOptions
from optin_cli.profiling.decoding import Timed, continuing, measure_generation
from optin_cli.progress import Progress


def generates(checkpoint: Checkpoint) -> bool:
    """Whether transformers continues texts by this model, which it does not by an exported one."""
    return checkpoint.blueprint.purpose == "next-token-prediction" and checkpoint.recorded is None


def timed(checkpoint: Checkpoint) -> Timed | None:
    """What times generation: by transformers, or by the runtime of an exported file that keeps keys and values."""
    if generates(checkpoint):
        return Timed(continuing(checkpoint.model))
    recorded = checkpoint.recorded
    if recorded is None or recorded.continues is None:
        return None
    return Timed(recorded.continues, recorded.runtime)


def what_it_is(checkpoint: Checkpoint) -> str:
    """What a message says of a model that does not generate: its name, and its class or that it was exported."""
    kind = "an exported file" if checkpoint.recorded is not None else f"a {checkpoint.blueprint.model_class}"
    return f"{checkpoint.name} is {kind}"


def require_generating(checkpoint: Checkpoint, what: str) -> None:
    """Refuse a model that does not generate (UsageError). what: the option that needs one to."""
    if not generates(checkpoint):
        raise UsageError(
            f"{what} needs a model that generates text, but {what_it_is(checkpoint)}.",
            hint=f"Leave out {what}, or pass a checkpoint of a causal language model.",
        )


def held_lengths(options: GenerationOptions, checkpoints: Sequence[Checkpoint]) -> GenerationOptions:
    """The options with prompts and continuations that all models hold: at most half of their positions are new."""
    inputs = (checkpoint.input for checkpoint in checkpoints)
    limits = [one.most for one in inputs if isinstance(one, TextInput) and one.most is not None]
    if not limits:
        return options
    new = min(options.new_tokens, max(min(limits) // 2, 2))
    return replace(options, new_tokens=new, prompt_length=min(options.prompt_length, max(min(limits) - new, 1)))


def require_decoding(checkpoint: Checkpoint, options: GenerationOptions) -> None:
    """Refuse timed generations that were asked for, of a model that does not generate (UsageError)."""
    if options.decode_runs and timed(checkpoint) is None:
        require_generating(checkpoint, "--decode-runs")


def with_generation(
    result: Evaluation, checkpoint: Checkpoint, against: Checkpoint | None, options: EvalOptions, progress: Progress
) -> Evaluation:
    """The evaluation with the speed of generation, of both models in one run where both can be timed."""
    runs = options.generation.runs(options.latency_runs)
    if not runs or timed(checkpoint) is None:
        return result
    models = [(one, by) for one in (checkpoint, against) if one is not None and (by := timed(one)) is not None]
    asked = held_lengths(options.generation, [one for one, _ in models])
    inputs = {
        batch: random_inputs([one.input for one, _ in models], checkpoint.input.workload(asked.prompt_length, batch))
        for batch in asked.decode_batch
    }
    progress.update(1, 1, f"generating {asked.new_tokens} tokens, {runs} runs")
    found = measure_generation([by for _, by in models], inputs, asked, runs)
    compared = result.against
    if compared is not None and len(found) > 1:
        compared = compared.model_copy(update={"generation": found[1]})
    return result.model_copy(update={"generation": found[0], "against": compared})
