"""Folders of sentence-transformers: the modules around a transformer, its prompts and lengths. Imports no torch.

`modules.json` lists a folder's modules in order, each with the class that loads it and the folder it lies in.
"""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from optin_cli.errors import CheckpointError, did_you_mean
from optin_cli.files import load_json

Loader = Literal["SentenceTransformer", "CrossEncoder"]
PACKAGE = "sentence_transformers"
MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
CONFIG = "config.json"
TRANSFORMER_SETTINGS = "sentence_*_config.json"
"""Settings of a transformer; older versions put the kind of model in place of the star."""
TRANSFORMER = "Transformer"
POOLING = "Pooling"
STAGES = (POOLING, "Dense", "Normalize", "LayerNorm", "Dropout")
"""Classes of modules that may follow a transformer."""
RERANKER_KEYS = ("sentence_transformers", "sbert_ce_default_activation_function")
"""Keys that a CrossEncoder puts into the transformer's own config."""
ALONE = f"To prune the transformer alone, pass a copy of its folder without {MODULES}."
QUERY, DOCUMENT = ("query",), ("document", "passage", "corpus")
"""Names of the prompts before what is searched for and what is searched; the first that a model has counts."""


@dataclass(frozen=True)
class Stage:
    """A module behind the transformer: its class, its folder, and the settings there."""

    kind: str
    folder: Path
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Sentences:
    """What sentence-transformers make of a folder.

    folder: the whole of it; encoder: where the transformer lies. loader: the class that opens the folder. stages:
    the modules behind the transformer. max_length: most tokens of a text. lower_case: whether texts lose their
    capitals. prompts: what is put before texts, by name; default_prompt: name of the one before any text.
    similarity: how embeddings are compared.
    """

    folder: Path
    encoder: Path
    loader: Loader
    stages: tuple[Stage, ...] = ()
    max_length: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str = "cosine"

    @property
    def embeds(self) -> bool:
        """Whether texts become embeddings, of the bare encoder's hidden states."""
        return self.loader == "SentenceTransformer"

    @property
    def auto_class(self) -> str:
        """What loads the transformer: embeddings are made with the one without a head."""
        return "AutoModel" if self.embeds else "AutoModelForSequenceClassification"

    def prompt(self, names: tuple[str, ...] = ()) -> str:
        """The prompt of the first of the names that there is; without names the default one; else nothing."""
        usual = () if self.default_prompt is None else (self.default_prompt,)
        return next((self.prompts[name] for name in names or usual if name in self.prompts), "")


def is_installed() -> bool:
    """Whether sentence-transformers can be imported here."""
    return importlib.util.find_spec(PACKAGE) is not None


def encoder_folder(folder: Path) -> Path:
    """Where the transformer of a folder lies: in the folder itself, or where modules.json says."""
    return _modules(folder)[0][1] if (folder / MODULES).is_file() else folder


def read_sentences(folder: Path) -> Sentences | None:
    """What sentence-transformers make of a folder; None for one that is not theirs.

    Raises CheckpointError: a file is unsound, or a module is none that optin knows.
    """
    if not (folder / MODULES).is_file():
        config = _read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
        reranks = isinstance(config, dict) and any(key in config for key in RERANKER_KEYS)
        return Sentences(folder, folder, "CrossEncoder") if reranks else None
    (kind, encoder), *rest = _modules(folder)
    if kind != TRANSFORMER:
        raise _unknown(folder, kind, "begins with", (TRANSFORMER,))
    whole = _settings(folder / SETTINGS)
    loader = whole.get("model_type", "SentenceTransformer")
    if loader == "CrossEncoder":
        if rest:
            raise _unknown(folder, rest[0][0], "of a CrossEncoder names", ())
    elif loader != "SentenceTransformer":
        raise CheckpointError(
            f"{folder} holds a {loader}; of sentence-transformers' models SentenceTransformer and CrossEncoder work.",
            hint=ALONE,
        )
    settings: dict[str, Any] = next(map(_settings, sorted(encoder.glob(TRANSFORMER_SETTINGS))), {})
    prompts = {name: text for name, text in (whole.get("prompts") or {}).items() if text}
    default = whole.get("default_prompt_name")
    return Sentences(
        folder=folder,
        encoder=encoder,
        loader=loader,
        stages=_stages(folder, rest) if loader == "SentenceTransformer" else (),
        max_length=settings.get("max_seq_length"),
        lower_case=bool(settings.get("do_lower_case", False)),
        prompts=prompts,
        default_prompt=default if default in prompts else None,
        similarity=whole.get("similarity_fn_name") or "cosine",
    )


def rooted_modules(sentences: Sentences) -> str:
    """Text of a modules.json whose transformer lies in the folder itself."""
    modules = json.loads((sentences.folder / MODULES).read_text(encoding="utf-8"))
    return json.dumps([{**modules[0], "path": ""}, *modules[1:]], indent=2) + "\n"


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Class and folder of every module, in order."""
    path = folder / MODULES
    found, within = _read_json(path), folder.resolve()
    if not isinstance(found, list) or not found:
        raise CheckpointError(f"{path} does not list modules: found {found!s:.60}.")
    modules = []
    for module in found:
        if not isinstance(module, dict) or not {"type", "path"} <= module.keys():
            raise CheckpointError(f"{path} has a module without type or path: {module!s:.80}.")
        package, _, _ = str(module["type"]).partition(".")
        place = folder / str(module["path"])
        if not place.resolve().is_relative_to(within):
            raise CheckpointError(f"{path} names {module['path']}, which is outside its folder.")
        if package != PACKAGE:
            raise CheckpointError(
                f"{path} names {module['type']}, code that is not part of sentence-transformers and is not run.",
                hint=ALONE,
            )
        modules.append((str(module["type"]).rpartition(".")[2], place))
    return modules


def _stages(folder: Path, modules: list[tuple[str, Path]]) -> tuple[Stage, ...]:
    kinds = [kind for kind, _ in modules]
    if POOLING not in kinds[:1] or POOLING in kinds[1:]:
        what = kinds[0] if kinds else "nothing"
        raise CheckpointError(
            f"{folder / MODULES} has {what} behind its transformer, and {kinds.count(POOLING)} of {POOLING}; expected "
            f"one {POOLING} there.",
        )
    stages = []
    for kind, place in modules:
        if kind not in STAGES:
            raise _unknown(folder, kind, "names", STAGES)
        stages.append(Stage(kind, place, _settings(place / CONFIG)))
    return tuple(stages)


def _unknown(folder: Path, kind: str, how: str, known: tuple[str, ...]) -> CheckpointError:
    return CheckpointError(
        f"{folder / MODULES} {how} the module {kind}; expected {' or '.join(known) or 'a transformer alone'}.",
        hint=f"{did_you_mean(kind, known)} {ALONE}".lstrip(),
    )


def _settings(path: Path) -> dict[str, Any]:
    """The settings of a file; none where it is missing."""
    found = _read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds {found!s:.40}; expected settings by name.")
    return found


def _read_json(path: Path) -> Any:
    try:
        return load_json(path, foreign=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
