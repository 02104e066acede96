"""Semantic segmentation: a class for every pixel, at the label map's own size.

Of each image only its map, compressed, and the diagonal and margins of its confusion matrix are kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from optin_cli.artifacts.base import Options
from optin_cli.checkpoints.image_input import SceneInput
from optin_cli.data.batch import Batch
from optin_cli.data.images.label_maps import IGNORED
from optin_cli.data.load import require_scenes
from optin_cli.errors import DataError
from optin_cli.evaluation import metrics
from optin_cli.evaluation.class_maps import ClassMap
from optin_cli.evaluation.predict import Prediction, Trial, encoded, over_batches
from optin_cli.evaluation.resampling import counted_at
from optin_cli.model.forward import call_model


@dataclass(frozen=True)
class Segmented:
    """What a model makes of a batch, by number of the image: maps, and counts of pixels where there are label maps."""

    keys: tuple[str, ...]
    maps: dict[int, ClassMap]
    counts: dict[int, torch.Tensor]


@torch.inference_mode()
def predict_maps(trial: Trial) -> Prediction:
    """Segment every image; with a task and label maps, measure what the model makes of them."""
    checkpoint, samples, task = trial.checkpoint, require_scenes(trial.samples), trial.task
    takes = checkpoint.input
    assert isinstance(takes, SceneInput)
    decode, classes = takes.map_decoder().decode, checkpoint.blueprint.num_labels

    def segment(batch: Batch) -> Segmented:
        maps: dict[int, ClassMap] = {}
        counts: dict[int, torch.Tensor] = {}
        raw = call_model(checkpoint.model, batch.inputs)
        outputs = {rule.name: raw[rule.name].float() for rule in checkpoint.structure.outputs}
        _require_finite(outputs)
        for place, row in enumerate(batch.rows):
            labels = None if task is None else samples.classes(row)
            size = samples.size(row) if labels is None else labels.shape
            found = decode({name: output[place : place + 1] for name, output in outputs.items()}, (size[0], size[1]))
            maps[row] = ClassMap.of(found.cpu().numpy())
            if labels is not None:
                counts[row] = metrics.count_pixels(found.cpu(), torch.from_numpy(labels), classes, IGNORED)
        return Segmented(batch.keys, maps, counts)

    found = over_batches(checkpoint, encoded(trial, labelled=False), segment, trial.progress)
    keys = [key for each in found for key in each.keys]
    maps = {row: one for each in found for row, one in each.maps.items()}
    counts = {row: count for each in found for row, count in each.counts.items()}
    in_order = [maps[row] for row in range(len(maps))]
    if task is None or not counts:
        return Prediction([], keys, constants=samples.constants, maps=in_order)
    in_all = torch.stack([counts[row] for row in counts])
    scores = metrics.score_maps(task.metrics, in_all)
    resampled: Options = {"resamples": metrics.RESAMPLES, "resample_seed": metrics.SEED}
    return Prediction(
        [],
        keys,
        scores.values,
        scores.error,
        constants={**samples.constants, **resampled},
        maps=in_order,
        class_iou=dict(zip(takes.class_names, scores.class_iou, strict=True)),
        at=counted_at(task.metrics[0], torch.stack([counts[row] for row in sorted(counts)])),
    )


def _require_finite(outputs: Mapping[str, torch.Tensor]) -> None:
    for name, output in outputs.items():
        if not bool(output.isfinite().all()):
            raise DataError(
                f"The model put out NaN or infinity in {name}.", hint="Check its weights, or run it in float32."
            )
