"""Read any artifact by its own schema. Importing this module does not import torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from optin_cli.artifacts.base import Artifact, validate
from optin_cli.artifacts.costs import Profile
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.export import Export
from optin_cli.artifacts.latency import LatencyTable
from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.mask import Mask
from optin_cli.artifacts.part import is_part, read_header, read_part_header
from optin_cli.artifacts.scores import Scores, ScoresHeader, read_scores
from optin_cli.artifacts.sweep import Sweep
from optin_cli.artifacts.vocabulary import Vocabulary
from optin_cli.errors import ArtifactError, OptinError, first_line
from optin_cli.files import MOST_BYTES, SCHEMA, STDIO, parse_json, read_bytes, sha256_of

KINDS: tuple[type[Artifact], ...] = (
    Profile,
    ScoresHeader,
    Mask,
    Manifest,
    Evaluation,
    Sweep,
    Export,
    LatencyTable,
    Vocabulary,
)
SCHEMAS = {str(kind.model_fields["schema_"].default): kind for kind in KINDS}
Content = TypeVar("Content", bound=Artifact | Scores)


@dataclass(frozen=True)
class Read(Generic[Content]):
    """An artifact with the name of its file and the sha256 that other artifacts record.

    folder: where the file lies, None for stdin.
    """

    name: str
    sha256: str
    content: Content
    folder: Path | None = None

    @property
    def head(self) -> Artifact:
        """The common fields of the artifact."""
        content: Artifact | Scores = self.content
        return content.header if isinstance(content, Scores) else content

    @property
    def kind(self) -> str:
        """The artifact's kind, such as scores, mask, manifest, eval or sweep."""
        return self.head.kind


def read_artifact(path: str | Path) -> Read[Artifact | Scores]:
    """Read a scores file (.safetensors), the header of a part, or any JSON artifact, "-" for stdin.

    Raises ArtifactError: it is no valid one.
    """
    name, folder = Path(path).name, None if str(path) == STDIO else Path(path).parent
    if Path(path).suffix == ".safetensors" and is_part(Path(path)):
        part = read_part_header(Path(path))
        return Read(name, sha256_of(part.dump().encode()), part, folder)
    if Path(path).suffix == ".safetensors":
        scores = read_scores(path)
        return Read(name, scores.source(name).sha256, scores, folder)
    try:
        raw = parse_json(read_bytes(path, "optin"))
    except ValueError as error:
        raise ArtifactError(f"{path} is neither a safetensors file nor valid JSON: {error}.") from error
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if not isinstance(schema, str) or schema not in SCHEMAS:
        raise ArtifactError(f"{path} has the schema {schema!r}; known are {', '.join(SCHEMAS)}.")
    if SCHEMAS[schema] is ScoresHeader:
        raise ArtifactError(
            f"{path} is the header of a scores file without its importances.",
            hint="Pass the .safetensors file that optin score wrote.",
        )
    artifact = validate(SCHEMAS[schema], raw, str(path))
    return Read(name, sha256_of(artifact.dump().encode()), artifact, folder)


def holds_scores(path: Path) -> bool:
    """Whether the header of a safetensors file says that it holds scores; tensors are not read."""
    return read_header(path) is not None and not is_part(path)


def artifacts_in(folder: Path, note: Callable[[str], None] | None = None) -> Iterator[Read[Artifact | Scores]]:
    """Yield the valid artifacts in a folder, by name; other files, and hidden ones, are skipped.

    note: is told of files of ours that are not valid.
    """
    for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        small = path.stat().st_size <= MOST_BYTES
        named = (path.suffix == ".json" and small) or (path.suffix == ".safetensors" and holds_scores(path))
        if named:
            try:
                yield read_artifact(path)
            except OptinError as error:
                if note is not None and (path.suffix != ".json" or SCHEMA in path.read_bytes()):
                    note(f"Left out {path.name}: {first_line(error)}")
