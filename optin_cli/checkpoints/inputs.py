"""What a model takes, text or images: its example and random inputs, its samples, and batches of them.

`Checkpoint.input` chooses the implementation; the rest of the package does not ask which it is.
"""

from collections.abc import Sequence

from torch import nn

from optin_cli.artifacts.base import Workload
from optin_cli.checkpoints.batching import Inputs
from optin_cli.checkpoints.image_input import ImageInput, SceneInput
from optin_cli.checkpoints.libraries.registry import Blueprint
from optin_cli.checkpoints.text_input import TextInput

ModelInput = TextInput | ImageInput
"""What one model takes; both kinds have the same attributes and methods.

noun: what a row of its input consists of. axes: names of an input's free axes, by number. unmergeable: why its tokens
can never be merged, None where its architecture decides. pairs: whether a label may belong to two rows, as in sentence
similarity.
"""


def model_input(name: str, blueprint: Blueprint, model: nn.Module, recorded: Workload | None = None) -> ModelInput:
    """What a model takes by its config. recorded: the shape that an exported model's costs are recorded for."""
    if blueprint.image is None:
        return TextInput(name, blueprint, model, recorded)
    kind = SceneInput if blueprint.purpose == "semantic-segmentation" else ImageInput
    return kind(name, blueprint, model, blueprint.image)


def random_inputs(inputs: Sequence[ModelInput], workload: Workload) -> list[Inputs]:
    """The same random inputs of a workload's shape for every model, each on its own device."""
    vocabulary = min(one.vocabulary for one in inputs)
    return [one.random(workload, vocabulary=vocabulary) for one in inputs]
