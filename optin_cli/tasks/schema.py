"""What a task file says: where its data lies, its columns, its kind and its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Role = Literal["calibration", "evaluation"]
Kind = Literal[
    "classification",
    "multi-label",
    "regression",
    "token-classification",
    "similarity",
    "retrieval",
    "reranking",
    "question-answering",
    "semantic-segmentation",
    "fill-mask",
    "next-token-prediction",
    "last-word",
]
InputKind = Literal["text", "image"]
MetricName = Literal[
    "accuracy",
    "top5",
    "f1",
    "matthews",
    "micro_f1",
    "macro_f1",
    "pearson",
    "spearman",
    "mse",
    "entity_f1",
    "entity_precision",
    "entity_recall",
    "word_accuracy",
    "ndcg@10",
    "recall@10",
    "recall@100",
    "mrr@10",
    "map",
    "squad_em",
    "squad_f1",
    "mean_iou",
    "pixel_accuracy",
    "pseudo_perplexity",
    "perplexity",
    "last_word_accuracy",
    "last_word_perplexity",
]
Colour = tuple[int, int, int]
METRICS_OF: Mapping[Kind, frozenset[MetricName]] = MappingProxyType(
    {
        "classification": frozenset({"accuracy", "top5", "f1", "matthews"}),
        "multi-label": frozenset({"micro_f1", "macro_f1"}),
        "regression": frozenset({"pearson", "spearman", "mse"}),
        "token-classification": frozenset({"entity_f1", "entity_precision", "entity_recall", "word_accuracy"}),
        "similarity": frozenset({"pearson", "spearman"}),
        "retrieval": frozenset({"ndcg@10", "recall@10", "recall@100", "mrr@10", "map"}),
        "reranking": frozenset({"ndcg@10", "recall@10", "mrr@10", "map"}),
        "question-answering": frozenset({"squad_em", "squad_f1"}),
        "semantic-segmentation": frozenset({"mean_iou", "pixel_accuracy"}),
        "fill-mask": frozenset({"pseudo_perplexity", "accuracy"}),
        "next-token-prediction": frozenset({"perplexity", "accuracy"}),
        "last-word": frozenset({"last_word_accuracy", "last_word_perplexity"}),
    }
)
IMAGE_KINDS: frozenset[Kind] = frozenset({"classification", "semantic-segmentation"})
"""Kinds that a task on images may be of: those whose labels are classes, with names."""
SEARCHES: frozenset[Kind] = frozenset({"retrieval", "reranking"})
"""Kinds that rank documents by how well they answer a query, on local data of their own layout."""
PAIRED: frozenset[Kind] = frozenset({"similarity", "question-answering"})
"""Kinds whose samples always have two texts."""
UNLABELLED: frozenset[Kind] = frozenset({"fill-mask", "next-token-prediction", "last-word"})
"""Kinds whose texts are their own labels."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetName(_Strict):
    """Arguments of `datasets.load_dataset`.

    folder: of the repository, the one that holds the data. files: the only files of a split to fetch, by its name.
    """

    path: str
    config: str | None = None
    folder: str | None = None
    revision: str | None = None
    files: dict[str, str] | None = None

    def place(self, split: str) -> dict[str, Any]:
        """Where in the repository the data of a split lies, by the names of the arguments."""
        files = None if self.files is None else {split: self.files[split]}
        found = {"data_dir": self.folder, "revision": self.revision, "data_files": files}
        return {name: value for name, value in found.items() if value is not None}


class Splits(_Strict):
    """The split of the dataset that plays each role."""

    calibration: str
    evaluation: str


class LabelMapRule(_Strict):
    """What the ids in a task's label maps mean.

    ignore_index: the id of pixels that do not count; reduce_labels: whether id 0 does not count either and id n is
    class n - 1. Where they are None the checkpoint's image processor decides. raw_ids: class of each id in maps that
    hold ids of another list; the other ids of those do not count. palette: a colour (red, green, blue) for each class.
    """

    ignore_index: int | None = None
    reduce_labels: bool | None = None
    raw_ids: dict[int, int] | None = None
    palette: tuple[Colour, ...] | None = None


class Task(_Strict):
    """A benchmark: dataset, columns, and metrics of which the first is *the* metric.

    `label_names` are in the dataset's label order, so that a model with another order is recognised; for
    images they are what class folders are called. A task without `dataset` takes local data, in which numbers are the
    model's own class ids; its text columns may be left to be guessed, and `other_label_columns` are names that its
    label column may have instead. For question answering the texts are question and context, and the label column
    holds the answers (`{"text": [...]}`); `unanswerable` allows questions without any, and None allows them where the
    data has such. `label_range` is what a similarity task calls unlike and alike: cosines 0 and 1 to a loss. `maps`
    explains the label maps of semantic segmentation. `joined`: rows are lines of one running text, which this joins;
    without it every row is a document. Retrieval and reranking take local data, whose layouts
    `optin_cli.data.text.searches` describes.
    """

    name: str
    input: InputKind = "text"
    dataset: DatasetName | None = None
    text_columns: Annotated[tuple[str, ...], Field(max_length=2)] = ()
    image_column: str | None = None
    label_column: str | None = None
    other_label_columns: tuple[str, ...] = ()
    label_names: tuple[str, ...] | None = None
    splits: Splits
    metrics: Annotated[tuple[MetricName, ...], Field(min_length=1)]
    kind: Kind
    unanswerable: bool | None = False
    label_range: tuple[float, float] | None = None
    maps: LabelMapRule | None = None
    joined: str | None = None

    @property
    def each_alone(self) -> bool:
        """Whether the model reads the two texts of a sample one at a time, not as one sequence."""
        return self.kind == "similarity"

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The label column, if it has one."""
        return () if self.label_column is None else (self.label_column,)

    @property
    def labels_itself(self) -> bool:
        """Whether its texts are their own labels."""
        return self.kind in UNLABELLED

    @model_validator(mode="after")
    def _check_label_column(self) -> Task:
        if (self.label_column is None) is not self.labels_itself:
            raise ValueError(f"a {self.kind} task has {'no' if self.labels_itself else 'a'} label_column")
        return self

    @model_validator(mode="after")
    def _check_running_text(self) -> Task:
        wanted = {self.splits.calibration, self.splits.evaluation}
        if self.dataset is not None and self.dataset.files is not None and set(self.dataset.files) != wanted:
            raise ValueError(f"files are of the splits {', '.join(sorted(wanted))}")
        if self.joined is not None and self.kind != "next-token-prediction":
            raise ValueError(f"joined does not fit a {self.kind} task")
        return self

    @model_validator(mode="after")
    def _check(self) -> Task:
        if self.input == "text" and (self.image_column or (self.dataset is not None and not self.text_columns)):
            raise ValueError("a text task has no image_column but, if it has a dataset, text_columns")
        if self.input == "image" and (self.text_columns or self.kind not in IMAGE_KINDS):
            raise ValueError("an image task is one of classification or semantic-segmentation and has no text_columns")
        if self.kind == "semantic-segmentation" and self.input != "image":
            raise ValueError("a semantic-segmentation task is one on images")
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError("a metric is listed more than once")
        unfit = [m for m in self.metrics if m not in METRICS_OF[self.kind]]
        if unfit:
            raise ValueError(f"metric {unfit[0]} does not fit a {self.kind} task")
        if self.kind not in IMAGE_KINDS and self.label_names is not None:
            raise ValueError(f"a {self.kind} task has no label_names")
        if self.kind in PAIRED and len(self.text_columns) != 2:
            raise ValueError(f"a {self.kind} task has two text_columns")
        if self.unanswerable is not False and self.kind != "question-answering":
            raise ValueError(f"unanswerable does not fit a {self.kind} task")
        if self.label_range is not None and (self.kind != "similarity" or self.label_range[0] >= self.label_range[1]):
            raise ValueError("label_range is two rising numbers, of a similarity task")
        if self.maps is not None:
            if self.kind != "semantic-segmentation":
                raise ValueError("maps explain label maps, of a semantic-segmentation task")
            if self.maps.palette is not None and len(self.maps.palette) != len(self.label_names or ()):
                raise ValueError("a palette has one colour for each of the label_names")
        return self
