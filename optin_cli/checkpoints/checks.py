"""Checks that a task, calibration by labels, or merging of tokens fits a model. They run before samples are read."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from optin_cli.architectures.registry import known_architectures
from optin_cli.architectures.schema import Purpose
from optin_cli.artifacts.costs import BLOCK, TOKEN
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.checkpoints.text_input import no_classes
from optin_cli.data.spec import DataSpec, require_data, require_input
from optin_cli.errors import ArchitectureError, ArtifactError, DataError
from optin_cli.model.depth import Depth, depth_of
from optin_cli.model.tokens import Tokens, tokens_of
from optin_cli.tasks.registry import load_task, own_task
from optin_cli.tasks.schema import Kind, Task

SEVERAL = (
    'For a model of several labels a text set "problem_type": "multi_label_classification" in its config.json, which '
    "decides that."
)
OTHER_TASK = "Evaluate on a task the model was trained for, or leave out --task and compare with --against."


SERVING: Mapping[Kind, tuple[Purpose, ...]] = MappingProxyType(
    {
        "retrieval": ("similarity",),
        "reranking": ("similarity", "regression"),
        "last-word": ("next-token-prediction",),
    }
)
"""Purposes of the models that a kind of task is for, where they are called otherwise."""


def require_fit(checkpoint: Checkpoint, task: Task, *, hint: str = OTHER_TASK) -> None:
    """Refuse a task of another input or kind than the model's, or unfit for its number of outputs (DataError)."""
    require_input(task, checkpoint.input.kind)
    blueprint, counted = checkpoint.blueprint, ""
    purpose, outputs = blueprint.purpose, blueprint.num_labels
    if purpose == task.kind and task.kind in ("classification", "regression"):
        one = outputs == 1
        # The user's own data may have as many numbers a sample as the model predicts.
        fits = one == (task.kind == "regression") or (task.kind == "regression" and task.dataset is None)
        counted = "" if fits else f" with {outputs} output{'s' * (not one)}"
    if purpose not in SERVING.get(task.kind, (task.kind,)) or counted:
        raise DataError(
            f"The task {task.name} is a {task.kind} task, but {checkpoint.name} is a {blueprint.model_class} "
            f"for {purpose}{counted}.",
            hint=SEVERAL if (task.kind, purpose) == ("multi-label", "classification") else hint,
        )


def choose_task(checkpoint: Checkpoint, name: str | None, spec: DataSpec) -> Task | None:
    """The task of that name; without a name, of data that names none either, what the model is for, if that has a task.

    Raises DataError: there is no task of that name, or it needs local data and none is named.
    """
    if name is None:
        known = spec.task
        local = spec.is_named and known is None
        return own_task(checkpoint.blueprint.purpose, checkpoint.input.kind) if local else known
    task = load_task(name)
    require_data(task, spec.local)
    return task


def require_loss(checkpoint: Checkpoint, task: Task | None, *, data: str, needed_by: str, hint: str) -> None:
    """Refuse calibration by labels that the model has no loss for.

    task: the task whose labels they are, None for the labels of a file or folder. data, needed_by: what the calibration
    data is called, and what needs the labels, for the message.

    Raises DataError: the task does not fit, or the model does not predict one label per sample. UsageError: class
    labels for a model of sentence embeddings.
    """
    blueprint = checkpoint.blueprint
    purpose, outputs, pairs = blueprint.purpose, blueprint.num_labels, checkpoint.input.pairs
    if task is not None:
        require_fit(checkpoint, task, hint=hint)
    elif purpose == "similarity" and pairs:
        raise no_classes(checkpoint.name, data)
    output = checkpoint.structure.outputs[0]
    known = {
        "classification": output.kind == "categorical" and outputs > 1,
        "regression": outputs == 1,
        "similarity": pairs,
    }
    if not known.get(purpose, False):
        raise DataError(
            f"{needed_by} needs the loss of one label per sample, but {checkpoint.name} is a "
            f"{blueprint.model_class} for {purpose}.",
            hint=hint,
        )


def require_tokens(checkpoint: Checkpoint) -> Tokens:
    """The tokens of a checkpoint, if they can merge (ArchitectureError, which says why, if they cannot)."""
    tokens = tokens_of(checkpoint.structure)
    if checkpoint.blueprint.plan and checkpoint.blueprint.plan.get("merge"):
        why, hint = "its tokens merge already", "Cut the original once, by one mask of heads, neurons and tokens."
    elif checkpoint.input.unmergeable is not None:
        why, hint = checkpoint.input.unmergeable, None
    elif tokens is None:
        why = f"its family {checkpoint.structure.family} does not describe how: its blocks need their tokens in place "
        why += "(windows, convolutions, relative positions), or take no attention mask"
        hint = "Plain vision transformers can: ViT, DeiT and DINOv2 of transformers and timm."
    elif tokens.dense:
        why, hint = f"its output {tokens.dense[0]} says something of every token", "Pass a classifier."
    elif tokens.mergeable < 2:
        why, hint = f"of its {tokens.length} tokens {tokens.special} are special", None
    else:
        return tokens
    raise ArchitectureError(f"The tokens of {checkpoint.name} cannot be reduced: {why}.", hint=hint)


def require_depth(checkpoint: Checkpoint) -> Depth:
    """The blocks of a checkpoint, if they can go as a whole (ArchitectureError, which says why, if they cannot)."""
    depth = depth_of(checkpoint.structure.kinds)
    if checkpoint.blueprint.plan and checkpoint.blueprint.plan.get("merge"):
        why, hint = "its tokens merge between them", "Remove blocks from the original."
    elif depth is None:
        why = f"its family {checkpoint.structure.family} does not describe how: its blocks differ, or there is only one"
        known = known_architectures(checkpoint.blueprint.library)
        able = sorted(kind for kind, one in known.items() if any(stack.depth for stack in one.stacks))
        hint = f"Leave blocks out of --units. Model types that can lose them: {', '.join(able)}."
    else:
        return depth
    raise ArchitectureError(f"No whole block of {checkpoint.name} can be removed: {why}.", hint=hint)


def require_kinds(checkpoint: Checkpoint, groups: Iterable[str]) -> None:
    """Refuse a mask of units that the checkpoint cannot lose (ArchitectureError); groups: their names."""
    kinds = {name.rpartition(".")[2] for name in groups}
    if TOKEN in kinds:
        require_tokens(checkpoint)
    if BLOCK in kinds:
        require_depth(checkpoint)
    if {TOKEN, BLOCK} <= kinds:
        raise ArtifactError(
            "The mask is one of tokens and of whole blocks, which cannot go together.",
            hint="Leave out the groups of one of the two.",
        )
