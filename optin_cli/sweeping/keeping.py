"""What a sweep leaves beside its record: scores of its recipes, masks of its points and, if asked for, the models."""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from optin_cli.artifacts.base import Source, Workload
from optin_cli.artifacts.scores import Scores, read_scores
from optin_cli.checkpoints.folders import MANIFEST
from optin_cli.errors import ArtifactError
from optin_cli.files import sha256_of, write_bytes, write_text
from optin_cli.options.sweep import RECIPES
from optin_cli.progress import Progress
from optin_cli.recipes.recipe import Setting
from optin_cli.sweeping.candidate import Candidate, candidate_mask, save_candidate

MODEL, MODELS = "model", "models"
MASK, MASKS = "mask.json", "masks"
SCORES = ".scores.safetensors"


@dataclass(frozen=True)
class Keeper:
    """Keeps what a sweep makes in its folder. models: whether every model is kept. workload: that masks state."""

    folder: Path
    models: bool
    workload: Workload

    def keep(self, candidate: Candidate, setting: Setting, scores: Scores | None, progress: Progress) -> None:
        """Write the mask of a candidate with the scores that it follows from, and the certified model if those stay."""
        mask = candidate_mask(candidate, setting, self.workload, self._keep_scores(candidate.recipe, scores))
        path, folder = self._mask(candidate.recipe, candidate.share), self._model(candidate.recipe, candidate.share)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.models:
            folder.parent.mkdir(exist_ok=True)
            save_candidate(candidate, setting, mask, folder, path, progress)
        else:
            write_text(path, mask.dump(), force=True)

    def lacks(self, recipe: str, share: float) -> bool:
        """Whether the model of a point that was measured earlier is still to be kept."""
        return self.models and not (self._model(recipe, share) / MANIFEST).is_file()

    def scores(self, recipe: str) -> Scores | None:
        """The scores of a recipe that an earlier sweep left, if they can be read."""
        try:
            return read_scores(self.folder / f"{recipe}{SCORES}")
        except ArtifactError:
            return None

    def choose(self, candidate: Candidate, setting: Setting, scores: Scores | None, progress: Progress) -> None:
        """Write the model that a sweep chose, and its mask."""
        mask = candidate_mask(candidate, setting, self.workload, self._keep_scores(candidate.recipe, scores))
        save_candidate(candidate, setting, mask, self.folder / MODEL, self.folder / MASK, progress)

    def clear(self, points: Collection[tuple[str, float]], *, chosen: bool) -> None:
        """Remove what an earlier sweep left in the folder. points: (recipe, share) of this one's points."""
        if not chosen and (self.folder / MODEL / MANIFEST).is_file():
            shutil.rmtree(self.folder / MODEL)
            (self.folder / MASK).unlink(missing_ok=True)
        names = {_name(*point) for point in points}
        for path in self.folder.glob(f"{MASKS}/*.json"):
            if _is_ours(path.stem) and path.stem not in names:
                path.unlink()
        for path in self.folder.glob(f"{MODELS}/*/{MANIFEST}"):
            if _is_ours(path.parent.name) and not (self.models and path.parent.name in names):
                shutil.rmtree(path.parent)
        for recipe in set(RECIPES) - {name for name, _ in points}:
            (self.folder / f"{recipe}{SCORES}").unlink(missing_ok=True)

    def _keep_scores(self, recipe: str, scores: Scores | None) -> Source | None:
        """Write the scores of a recipe that has any, unless they are there; their name and hash."""
        if scores is None:
            return None
        path, content = self.folder / f"{recipe}{SCORES}", scores.content()
        if not path.is_file() or path.read_bytes() != content:
            self.folder.mkdir(exist_ok=True)
            write_bytes(path, content, force=True)
        return Source(name=path.name, sha256=sha256_of(content))

    def _mask(self, recipe: str, share: float) -> Path:
        return self.folder / MASKS / f"{_name(recipe, share)}.json"

    def _model(self, recipe: str, share: float) -> Path:
        return self.folder / MODELS / _name(recipe, share)


def _name(recipe: str, share: float) -> str:
    """What the mask and the model of a point are called."""
    return f"{recipe}-{share:g}"


def _is_ours(name: str) -> bool:
    """Whether a name is that of a point of some sweep."""
    recipe, _, share = name.rpartition("-")
    return recipe in RECIPES and share.replace(".", "", 1).isdigit()
