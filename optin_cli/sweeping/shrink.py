"""Score, search, prune and evaluate in one go: a smaller checkpoint with its artifacts beside it."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optin_cli.artifacts.base import parse
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.scores import write_scores
from optin_cli.checkpoints.checkpoint import Checkpoint, as_checkpoint, load
from optin_cli.checkpoints.folders import MANIFEST
from optin_cli.data.spec import DataSpec, require_data
from optin_cli.errors import UsageError
from optin_cli.evaluation.evaluate import evaluate
from optin_cli.files import atomic_folder, check_apart, check_output, read_bytes, write_bytes, write_text
from optin_cli.options.refit import RefitOptions
from optin_cli.options.shrink import ShrinkOptions
from optin_cli.options.sweep import SweepOptions
from optin_cli.progress import SILENT, Progress, Steps
from optin_cli.pruning.model_card import write_measured
from optin_cli.pruning.prune import prune
from optin_cli.scoring.score import score
from optin_cli.searching.limits import Limits
from optin_cli.searching.search import search
from optin_cli.sweeping.keeping import MASK, MODEL
from optin_cli.sweeping.sweep import check_folder, require_chosen, sweep
from optin_cli.tasks.registry import load_task

WEIGHTS = {"score": 4.0, "search": 0.1, "prune": 3.0, "eval": 3.0, "sweep": 20.0}
"""Time that stages are expected to take, relative to each other."""


@dataclass(frozen=True)
class Places:
    """Where a run leaves what it makes: all beside the folder of the result, under its name."""

    folder: Path

    def beside(self, ending: str) -> Path:
        """The path with the folder's name and an ending."""
        return self.folder.with_name(self.folder.name + ending)

    @property
    def scores(self) -> Path:
        """Importances of units."""
        return self.beside(".scores.safetensors")

    @property
    def mask(self) -> Path:
        """The units that stay."""
        return self.beside(".mask.json")

    @property
    def evaluation(self) -> Path:
        """The result against the original."""
        return self.beside(".eval.json")

    @property
    def sweep(self) -> Path:
        """Folder of the models that were tried for an allowed drop."""
        return self.beside(".sweep")


@dataclass(frozen=True)
class Shrunk:
    """A finished run: its artifacts, and the seconds that each stage took, by name in order."""

    places: Places
    manifest: Manifest
    evaluation: Evaluation
    seconds: dict[str, float]


def check_places(
    places: Places, options: ShrinkOptions, *, force: bool, inputs: Sequence[str | Path | None] = ()
) -> None:
    """Refuse outputs that exist, cannot be written or would destroy an input, before any time is spent."""
    check_apart(places.folder, inputs)
    check_output(places.folder, force=force, folder=True)
    for path in (places.mask, places.evaluation, *([places.scores] if options.keep_flops is not None else [])):
        check_apart(path, inputs)
        check_output(path, force=force)
    if options.keep_flops is None:
        check_folder(places.sweep, resume=False, force=force)


@dataclass(frozen=True)
class Run:
    """A run in progress. report: called with the name of every stage that begins. seconds: of the stages that ended."""

    opened: Checkpoint
    calib: DataSpec
    places: Places
    options: ShrinkOptions
    refit: RefitOptions
    force: bool
    steps: Steps
    report: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """Time a stage."""
        self.report(name)
        begin = time.perf_counter()
        with self.steps.begin(WEIGHTS[name], f"{name}: "):
            yield self.steps
        self.seconds[name] = time.perf_counter() - begin

    def by_share(self, share: float) -> None:
        """Score, search and prune to a share of the MACs."""
        places, options = self.places, self.options
        with self.stage("score") as progress:
            length = options.evaluation.seq_len
            scores = score(self.opened, self.calib, options.scoring, seq_len=length, progress=progress)
            write_scores(places.scores, scores, force=self.force)
        chosen = options.search
        limits = Limits(
            keep_macs=share,
            round_to=chosen.round_to,
            minima={"head": chosen.min_heads, "neuron": chosen.min_neurons},
            protect=chosen.protect,
            layout=chosen.layout,
        )
        with self.stage("search"):
            mask = search(scores, limits, name=places.scores.name)
            write_text(places.mask, mask.dump(), force=self.force)
        with self.stage("prune") as progress:
            prune(
                self.opened,
                mask,
                places.folder,
                refit=self.calib,
                options=self.refit,
                force=self.force,
                name=places.mask.name,
                progress=progress,
            )

    def by_drop(self, task: str | None, data: DataSpec, most: float) -> None:
        """Find the smallest model within a drop; it stays in the record of the sweep too."""
        places, options = self.places, self.options
        how = SweepOptions(
            max_drop=most,
            confidence=options.confidence,
            evaluations=options.evaluations,
            ridge=options.ridge,
            scoring=options.scoring,
            evaluation=options.evaluation,
        )
        with self.stage("sweep") as progress:
            found = sweep(
                self.opened, task, self.calib, places.sweep, how, data=data, force=self.force, progress=progress
            )
            require_chosen(found)
            with atomic_folder(places.folder, force=self.force) as folder:
                shutil.copytree(places.sweep / MODEL, folder, dirs_exist_ok=True)
            write_bytes(places.mask, read_bytes(places.sweep / MASK, "mask"), force=self.force)

    def evaluate(self, task: str | None, data: DataSpec) -> Evaluation:
        """Measure the result against the original, and write that beside it and into its card."""
        image, places = self.opened.blueprint.image, self.places
        size = (image.height, image.width) if image is not None and image.resized else None
        with self.stage("eval") as progress:
            small = load(places.folder, image_size=size, device=str(self.opened.device))
            options = self.options.evaluation
            result = evaluate(small, task, data, against=self.opened, options=options, progress=progress)
            write_measured(places.folder, result, places.evaluation, force=self.force)
        return result


def shrink(
    checkpoint: Checkpoint | str | Path,
    calib: DataSpec | str | Path,
    output: str | Path,
    options: ShrinkOptions,
    *,
    task: str | None = None,
    data: DataSpec | str | Path | None = None,
    force: bool = False,
    progress: Progress = SILENT,
    report: Callable[[str], None] = lambda _stage: None,
) -> Shrunk:
    """Make a checkpoint smaller: to a share of its MACs, or as far as the task's metric allows.

    Args:
        calib: unlabelled texts or images to score and refit on; a task name, a file or a folder.
        output: folder of the smaller checkpoint. Scores (or the sweep), mask and evaluation are written beside it.
        task: whose metric is measured; without it, that of what the model is for on `data`, or size and speed alone.
        data: what to evaluate on, in place of the task's dataset.
        report: called with the name of every stage that begins.

    Raises:
        UsageError: a drop is limited, but there is neither task nor data. GateError: no model is within the drop.
            OptinError: whatever a stage raises. A drop beyond the limit at a share of the MACs is for the caller to see
            (`evaluation.evaluate.require_drop`), since the result is there.
    """
    places, examined = Places(Path(output)), DataSpec.of(data)
    if task is not None:
        require_data(load_task(task), examined.local)
    elif options.max_drop is not None and not examined.is_named:
        raise UsageError(
            "--max-drop limits the fall of a metric, and nothing names one.",
            hint="Pass --task NAME, or labelled samples of what the model is for with --data PATH.",
        )
    check_places(places, options, force=force)
    refit = options.refit
    stages = ["sweep", "eval"] if options.keep_flops is None else ["score", "search", "prune", "eval"]
    steps = Steps(progress, sum(WEIGHTS[name] for name in stages))
    run = Run(as_checkpoint(checkpoint), DataSpec.of(calib), places, options, refit, force, steps, report)
    if options.keep_flops is not None:
        run.by_share(options.keep_flops)
    else:
        run.by_drop(task, examined, options.max_drop or 0.0)
    evaluation = run.evaluate(task, examined)
    manifest = parse(Manifest, read_bytes(places.folder / MANIFEST, "manifest"), MANIFEST)
    return Shrunk(places, manifest, evaluation, run.seconds)
