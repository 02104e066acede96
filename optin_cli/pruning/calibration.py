"""Find the calibration data that a mask was scored on, so that a refit can use it again."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from optin_cli.artifacts.mask import Mask
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.data.spec import DataSpec
from optin_cli.errors import DataError, UsageError
from optin_cli.options.images import ImageOptions
from optin_cli.progress import SILENT, Progress

HINT = "Pass it with --calib TASK|PATH, or pass --no-refit to keep the weights that are left as they are."


@dataclass(frozen=True)
class RecordedData:
    """The calibration data that a mask records, wherever it lies.

    beside: the folder of the mask, where it is looked for too. images: how images are read.
    """

    beside: Path | None = None
    images: ImageOptions = field(default_factory=ImageOptions)

    def find(self, checkpoint: Checkpoint, mask: Mask, name: str, progress: Progress = SILENT) -> DataSpec:
        """Find the data by its path or task, and check it by its hash; name: what messages call the mask.

        Raises:
            UsageError: the mask records no data, or not how it was read. DataError: the data is not where it was, or
                is other data.
        """
        source = mask.inputs.get("calibration")
        if source is None or source.data is None:
            what = (
                "no calibration data" if source is None else f"the name of its calibration data, {source.name}, alone"
            )
            raise UsageError(f"{name} records {what}, so nothing says what to refit on.", hint=HINT)
        folders = [Path(), *([] if self.beside is None else [self.beside])]
        others = []
        for path in source.places(*folders) if source.data.local else [None]:
            spec = DataSpec.recorded(source.data, path, self.images)
            try:
                found = checkpoint.input.load_samples(spec, progress).sha256
            except DataError as error:
                if path is None:
                    raise DataError(
                        f"{name} was scored on {source.name}, which cannot be read again: {error.message}", hint=HINT
                    ) from error
                found = ""
            if found == source.sha256:
                progress.note(f"refitting on {spec.path or spec.source}, which {name} was scored on")
                return replace(spec, limit=None, labelled=False, length=None)
            others.append(source.name if path is None else str(path))
        why = f"{' and '.join(others)} holds other samples now" if others else f"there is no {source.place} here"
        raise DataError(f"{name} was scored on {source.name} (sha256 {source.sha256[:12]}), but {why}.", hint=HINT)
