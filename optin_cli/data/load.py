"""Samples of every kind."""

from optin_cli.artifacts.base import Source, relative_path
from optin_cli.data.images.samples import ImageSamples
from optin_cli.data.images.scene_samples import SceneSamples
from optin_cli.data.spec import DataSpec
from optin_cli.data.text.samples import Samples
from optin_cli.data.text.searches import Searches
from optin_cli.errors import DataError
from optin_cli.tasks.schema import Task

AnySamples = Samples | ImageSamples


def described(samples: AnySamples) -> str:
    """How many samples of which data were read, and from which columns."""
    columns = samples.columns if isinstance(samples, Samples) else ()
    where = f", column{'s' * (len(columns) > 1)} {', '.join(columns)}" if columns else ""
    few = f"{len(samples):,}" if len(samples) == samples.total else f"{len(samples):,} of {samples.total:,}"
    return f"{few} samples of {samples.name}{where}"


def source_of(samples: AnySamples, spec: DataSpec) -> Source:
    """Samples as artifacts record them; of calibration, and of chosen columns, also how they are read again."""
    said = spec.role == "calibration" or spec.columns is not None or spec.label_column is not None
    path = relative_path(spec.local, samples.name)
    return Source(name=samples.name, sha256=samples.sha256, path=path, data=spec.record if said else None)


def is_measurable(samples: AnySamples, task: Task | None) -> bool:
    """Whether predictions can be measured: a task names the metrics, and there is something to measure by."""
    return task is not None and (samples.labelled or task.labels_itself)


def require_texts(samples: AnySamples) -> Samples:
    """The samples, which must be texts (DataError otherwise)."""
    if isinstance(samples, ImageSamples):
        raise DataError(f"{samples.name} holds images; expected texts.", hint="Pass texts, or another task.")
    return samples


def require_searches(samples: AnySamples) -> Searches:
    """The samples, which must be queries with documents (DataError otherwise)."""
    if not isinstance(samples, Searches):
        raise DataError(f"{samples.name} holds no queries with documents.", hint="Pass data of a retrieval task.")
    return samples


def require_scenes(samples: AnySamples) -> SceneSamples:
    """The samples, which must be images that may have label maps (DataError otherwise)."""
    if not isinstance(samples, SceneSamples):
        raise DataError(f"{samples.name} holds no images with label maps.", hint="Pass images and label maps.")
    return samples


def require_images(samples: AnySamples) -> ImageSamples:
    """The samples, which must be images (DataError otherwise)."""
    if isinstance(samples, Samples):
        raise DataError(f"{samples.name} holds texts; expected images.", hint="Pass images, or another task.")
    return samples
