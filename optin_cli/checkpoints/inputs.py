"""What a model takes, text or images: its example and random inputs, its samples, and batches of them.

`Checkpoint.input` chooses the implementation; the rest of the package does not ask which it is.
"""

import importlib.util
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn

from optin_cli.architectures.schema import Purpose
from optin_cli.artifacts.base import Workload
from optin_cli.checkpoints.libraries.registry import Blueprint, ImageSpec, MapDecoder, Preprocess
from optin_cli.data.batch import Batch
from optin_cli.data.images.batches import image_batches
from optin_cli.data.images.label_maps import LabelIds, explain_ids
from optin_cli.data.images.samples import ImageSamples, load_image_samples
from optin_cli.data.images.scene_samples import load_scene_samples
from optin_cli.data.labels import image_class_ids, label_ids, label_sets, value_rows
from optin_cli.data.load import AnySamples, require_images, require_texts
from optin_cli.data.spec import DataSpec
from optin_cli.data.text.masked import Masking
from optin_cli.data.text.pairs import pair_batches
from optin_cli.data.text.prompts import lower_cased, prompt_tokens, put_before
from optin_cli.data.text.samples import Samples, load_samples
from optin_cli.data.text.searches import load_searches
from optin_cli.data.text.tokenize import INPUTS, make_batches, reserved_positions, usable_length
from optin_cli.errors import CheckpointError, UsageError, first_line
from optin_cli.options.common import DEFAULT_LENGTH, DEFAULT_MASK_EVERY, DEFAULT_SEQ_LEN
from optin_cli.progress import SILENT, Progress
from optin_cli.tasks.schema import SEARCHES, InputKind, Task

Inputs = dict[str, torch.Tensor]
TEXT = "input_ids"
PROBE_ROWS, PROBE_TOKENS = 4, 24
MOST_PIXELS = 32 * 224 * 224
"""Pixels of the images of one batch. Scores of a Mask2Former keep some 12 KB a pixel for their backward passes."""
MOST_LOGITS = 2**26
"""Numbers that the output of one batch holds, where there is one for every token and word of the vocabulary."""
VOCABULARY_HEADS: frozenset[Purpose] = frozenset({"fill-mask", "next-token-prediction"})
"""What models with such outputs are for."""
PIECES = "*.model"
VOCABULARIES = ("tokenizer.json", "vocab.*", PIECES)


def device_of(model: nn.Module) -> torch.device:
    """Where a model lies. One that a runtime holds has no parameters here, and computes on the CPU."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


@dataclass(frozen=True)
class BatchOptions:
    """How samples become batches.

    max_length: most tokens of a text, None for the default. task: names classes where the data does not. labelled:
    whether batches carry the model's class ids. prompt: names that the prompt before each text may have; the model's
    default one where there are none.
    """

    batch_size: int
    max_length: int | None = None
    task: Task | None = None
    labelled: bool = False
    prompt: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextInput:
    """Token ids with their mask, `input_ids` and `attention_mask`, (rows, tokens).

    A model that chooses among several texts, (rows, choices, tokens), gets one at a time: each has a number of its own.

    recorded: the shape that the costs of an exported model are recorded for.
    """

    name: str
    blueprint: Blueprint
    model: nn.Module
    recorded: Workload | None = None
    kind: ClassVar[InputKind] = "text"
    noun: ClassVar[str] = "tokens"
    unmergeable: ClassVar[str | None] = (
        "it takes text, whose tokens do not repeat each other as the patches of an image do"
    )
    pairs: ClassVar[bool] = True

    @property
    def axes(self) -> Mapping[int, str]:
        """Names of the free axes."""
        return MappingProxyType({0: "batch", 2 if self.blueprint.head.choices else 1: "length"})

    @property
    def _positions(self) -> int:
        """Rows of the position table; 0 where there is none."""
        return max(int(getattr(self.blueprint.config, "max_position_embeddings", None) or 0), 0)

    @property
    def most(self) -> int | None:
        """Most tokens of a sequence that the model's positions hold, or its folder says; None where nothing does."""
        held = self._positions - self.reserved if self._positions else None
        return held if self.own_length is None else self.own_length

    @property
    def own_length(self) -> int | None:
        """Tokens at which sentence-transformers cut a text; None where the folder does not say."""
        said = None if self.blueprint.sentences is None else self.blueprint.sentences.max_length
        return min(said, self._positions - self.reserved) if said is not None and self._positions else said

    @property
    def reserved(self) -> int:
        """Rows of the position table that no token uses."""
        return reserved_positions(self.model, self._positions) if self._positions else 0

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the model knows."""
        return int(self.blueprint.config.vocab_size)

    def rows_at_once(self, asked: int, tokens: int) -> int:
        """Rows of so many tokens that are run at once: fewer than `asked` where their outputs would be too large."""
        if self.blueprint.purpose not in VOCABULARY_HEADS:
            return asked
        return min(asked, max(1, MOST_LOGITS // (tokens * self.vocabulary)))

    def names(self) -> tuple[str, ...]:
        """Names of the tensors that an exported file takes: what the tokenizer gives of what the model takes."""
        try:
            given = set(self.tokenizer().model_input_names)
        except CheckpointError:
            given = set()
        taken = inspect.signature(self.model.forward).parameters
        return tuple(name for name in INPUTS if name in taken and (name in given or name != "token_type_ids"))

    def check(self) -> None:
        """Nothing to check: texts have any length."""

    def length(self, asked: int | None) -> int | None:
        """Length that costs are stated for: `asked`, else 128 or the recorded one (UsageError if that is too long)."""
        most = self.most or DEFAULT_SEQ_LEN
        if asked is None:
            return min(DEFAULT_SEQ_LEN, most) if self.recorded is None else self.recorded.seq_len
        if not 1 <= asked <= most:
            raise UsageError(f"The sequence length {asked} is not within 1 to {most}, what {self.name} holds.")
        return asked

    def workload(self, seq_len: int | None = None, batch_size: int = 1) -> Workload:
        """The shape that costs are stated for: `batch_size` sequences of `seq_len` tokens."""
        return Workload(batch_size=batch_size, seq_len=seq_len)

    def example(self, workload: Workload) -> Inputs:
        """Equal rows of a workload's shape on the model's device: one id throughout, which is not that of padding."""
        fill = 1 if self.blueprint.config.pad_token_id == 0 else 0
        return self._unpadded(torch.full((workload.batch_size, workload.seq_len or 1), fill))

    def random(self, workload: Workload, *, seed: int = 0, vocabulary: int | None = None) -> Inputs:
        """Random ids below `vocabulary` (or the model's own) without padding, on the model's device."""
        shape = (workload.batch_size, workload.seq_len or 1)
        return self._unpadded(torch.randint(vocabulary or self.vocabulary, shape, generator=_generator(seed)))

    def _unpadded(self, ids: torch.Tensor) -> Inputs:
        ids = ids.to(device_of(self.model))
        return self._shaped({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def _shaped(self, inputs: Inputs) -> Inputs:
        """Inputs (rows, tokens) as the model takes them."""
        if not self.blueprint.head.choices:
            return inputs
        return {name: tensor.unsqueeze(1) for name, tensor in inputs.items()}

    def probe(self, most: int | None, *, rows: int = PROBE_ROWS, tokens: int = PROBE_TOKENS) -> Inputs:
        """Fixed random ids on the CPU, `tokens` or at most `most` long, each row padded more than the one before."""
        tokens = min(tokens, most or tokens)
        least = min(5, self.vocabulary - 1)
        ids = torch.randint(least, self.vocabulary, (rows, tokens), generator=_generator(0))
        mask = torch.ones_like(ids)
        for row in range(rows):
            mask[row, tokens - row * tokens // (2 * rows) :] = 0
        padding = self.blueprint.config.pad_token_id or 0
        return self._shaped({"input_ids": torch.where(mask.bool(), ids, padding), "attention_mask": mask})

    def tokenizer(self, *, words: bool = False) -> Any:
        """The tokenizer beside the config (CheckpointError where there is none).

        words: for texts that come as words. A tokenizer that tells words by the space before them then takes the first
        of a text, and each that follows, to have one.
        """
        from transformers import AutoTokenizer

        folder = self.blueprint.folder
        hint = f"Put tokenizer.json and tokenizer_config.json into {folder}."
        # Without a vocabulary transformers makes up an empty one, in which every word is unknown.
        if folder is None or not any(path for pattern in VOCABULARIES for path in folder.glob(pattern)):
            raise CheckpointError(f"{self.name} has no usable tokenizer: no vocabulary file.", hint=hint)
        pieces = next(folder.glob(PIECES), None)
        others = [path for pattern in VOCABULARIES if pattern != PIECES for path in folder.glob(pattern)]
        if pieces is not None and not others and importlib.util.find_spec("sentencepiece") is None:
            raise CheckpointError(
                f"The tokenizer of {self.name} has only a SentencePiece file, {pieces.name}, and sentencepiece is not "
                "installed.",
                hint='pip install sentencepiece, or "optin-cli[sentencepiece]".',
            )
        sentences = self.blueprint.sentences
        limit = {} if self.own_length is None else {"model_max_length": self.own_length}
        try:
            found = AutoTokenizer.from_pretrained(folder, local_files_only=True, **limit)
            if words and getattr(found, "add_prefix_space", None) is False:
                found = AutoTokenizer.from_pretrained(folder, local_files_only=True, add_prefix_space=True, **limit)
            if sentences is not None and sentences.lower_case:
                found = lower_cased(found)
        except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
            raise CheckpointError(f"{self.name} has no usable tokenizer: {first_line(error)}", hint=hint) from error
        return found

    def preprocess(self) -> Preprocess:
        """Refuse: texts are tokenised."""
        raise CheckpointError(f"{self.name} takes text, so it has no image preprocessing.")

    def load_samples(self, spec: DataSpec, progress: Progress = SILENT) -> AnySamples:
        """Read and select texts of a file, folder or task; errors as of `optin_cli.data.text.samples.load_samples`.

        A model of sentence embeddings reads texts one at a time, so that calibration data of two texts per row has
        one sample per text, unless it is of a named task that makes one sequence of both.
        """
        del progress
        task, path = spec.resolve(self.kind)
        if task is not None and task.kind in SEARCHES:
            return load_searches(spec, task, path)
        return load_samples(spec, alone=self.blueprint.purpose == "similarity", classes=self.blueprint.label_names)

    def batches(self, samples: AnySamples, options: BatchOptions) -> Sequence[Batch]:
        """Padded batches on the model's device, of two texts as one sequence or, for similarity by labels, each alone.

        A model that fills in masked tokens gets some to fill in.

        Raises UsageError: a size out of range, or class labels and a model of sentence embeddings. DataError: labels
        without a class.
        """
        texts, task = require_texts(samples), options.task
        tokenizer = self.tokenizer(words=texts.words is not None)
        length = usable_length(tokenizer, self.most, options.max_length, default=self.own_length or DEFAULT_LENGTH)
        size = self.rows_at_once(options.batch_size, length)
        sentences = self.blueprint.sentences
        prompt = "" if sentences is None else sentences.prompt(options.prompt)
        texts, before = put_before(prompt, texts), prompt_tokens(prompt, tokenizer)
        if options.labelled and task is not None and task.each_alone:
            pairs = pair_batches(texts, task, tokenizer, batch_size=size, max_length=length)
            return self.fed([replace(batch, prompt=before) for batch in pairs], tokenizer)
        if options.labelled and self.blueprint.purpose == "similarity":
            raise no_classes(self.name, texts.name)
        labels = self._labels(texts, task) if options.labelled else None
        found = make_batches(texts, tokenizer, batch_size=size, max_length=length, labels=labels)
        if self.blueprint.purpose == "fill-mask":
            masking = Masking.of(tokenizer, DEFAULT_MASK_EVERY)
            found = [masking.once(batch) for batch in found]
        return self.fed([replace(batch, prompt=before) for batch in found], tokenizer)

    def fed(self, batches: Iterable[Batch], tokenizer: Any) -> list[Batch]:
        """What the model takes of the batches (CheckpointError if its embeddings lack a token of theirs)."""
        fed = fit_inputs(self.model, [replace(batch, inputs=self._shaped(batch.inputs)) for batch in batches])
        highest = max((int(batch.inputs[TEXT].max()) for batch in fed if batch.inputs[TEXT].numel()), default=0)
        if highest >= self.vocabulary:
            raise CheckpointError(
                f"The tokenizer of {self.name} has {len(tokenizer)} tokens and gives id {highest}, but the embeddings "
                f"of its model have {self.vocabulary} rows.",
                hint="Resize and save the model where it was made, model.resize_token_embeddings(len(tokenizer)), "
                "or put the model's own tokenizer into the folder.",
            )
        return fed

    def _labels(self, samples: Samples, task: Task | None) -> Sequence[int | float | Sequence[float]] | None:
        """What the model is to put out for each sample, None where the samples have no labels."""
        purpose, config = self.blueprint.purpose, self.blueprint.config
        if purpose == "multi-label":
            return label_sets(samples, task, config)
        if purpose == "regression" and samples.label_lists is not None:
            return value_rows(samples, int(config.num_labels))
        known = label_ids(samples, task, config)
        return None if known is None or samples.labels is None else [known[label] for label in samples.labels]

    def read_length(self, asked: int | None) -> int | None:
        """Most tokens that are read of a text: `asked`, or the default (UsageError if the model does not hold them)."""
        return usable_length(self.tokenizer(), self.most, asked, default=self.own_length or DEFAULT_LENGTH)

    def read_limit(self) -> int | None:
        """Most tokens of a text that both tokenizer and model take; None where nothing limits them."""
        most = min(int(self.tokenizer().model_max_length), self.most or sys.maxsize)
        return most if most < sys.maxsize else None

    def positive_class(self, samples: AnySamples, task: Task) -> int:
        """The model's id of the class that F1 of two classes counts: the data's class 1."""
        return int((label_ids(require_texts(samples), task, self.blueprint.config) or {}).get(1, 1))


@dataclass(frozen=True)
class ImageInput:
    """Pixels of one size under one name, (rows, channels, height, width)."""

    name: str
    blueprint: Blueprint
    model: nn.Module
    image: ImageSpec
    kind: ClassVar[InputKind] = "image"
    noun: ClassVar[str] = "pixels"
    axes: ClassVar[Mapping[int, str]] = MappingProxyType({0: "batch"})
    unmergeable: ClassVar[str | None] = None
    pairs: ClassVar[bool] = False
    most: ClassVar[int | None] = None
    reserved: ClassVar[int] = 0
    vocabulary: ClassVar[int] = 0

    def names(self) -> tuple[str, ...]:
        """The one tensor."""
        return (self.image.input_name,)

    def rows_at_once(self, asked: int, tokens: int) -> int:
        """As many as asked."""
        del tokens
        return asked

    @torch.no_grad()
    def check(self) -> None:
        """Refuse a model that does not take images of the size that its own preprocessing makes (CheckpointError)."""
        image = self.image
        try:
            self.model(**self.example(self.workload()))
        except (RuntimeError, ValueError, AssertionError) as error:
            if image.resized:
                raise UsageError(
                    f"{self.name} does not take images of {image.height} x {image.width} pixels: "
                    f"{first_line(error).rstrip('.')}.",
                    hint="It may take one size only, or multiples of some number; pass another --image-size.",
                ) from error
            raise CheckpointError(
                f"{self.name} says that its images have {image.height} x {image.width} pixels and {image.channels} "
                f"channels, but its model refuses them: {first_line(error).rstrip('.')}.",
                hint="Correct the size in the checkpoint's preprocessing: input_size in config.json for timm, size and "
                "crop_size in preprocessor_config.json for transformers.",
            ) from error

    def length(self, asked: int | None) -> int | None:
        """None, since images have one size (UsageError where a length is asked)."""
        if asked is None:
            return None
        raise UsageError(
            f"{self.name} takes images of {self.workload().shape}, which have no sequence length.",
            hint="Leave out --seq-len.",
        )

    def workload(self, seq_len: int | None = None, batch_size: int = 1) -> Workload:
        """`batch_size` images of the model's size."""
        del seq_len
        return Workload(batch_size=batch_size, image=self.image.shape, resized=self.image.resized or None)

    def example(self, workload: Workload) -> Inputs:
        """Zeros."""
        return self._named(torch.zeros(self._shape(workload)))

    def random(self, workload: Workload, *, seed: int = 0, vocabulary: int | None = None) -> Inputs:
        """Normal noise."""
        del vocabulary
        return self._named(torch.randn(self._shape(workload), generator=_generator(seed)))

    def _shape(self, workload: Workload) -> tuple[int, ...]:
        return workload.batch_size, *(workload.image or self.image.shape)

    def _named(self, pixels: torch.Tensor) -> Inputs:
        return {self.image.input_name: pixels.to(device_of(self.model))}

    def probe(self, most: int | None, *, rows: int = PROBE_ROWS, tokens: int = PROBE_TOKENS) -> Inputs:
        """Normal noise."""
        del most, tokens
        return {self.image.input_name: torch.randn((rows, *self.image.shape), generator=_generator(0))}

    def tokenizer(self, *, words: bool = False) -> Any:
        """Refuse: images are not tokenised."""
        del words
        raise CheckpointError(
            f"{self.name} is an image model ({self.blueprint.model_class}), so it has no tokenizer.",
            hint="Pass a folder of images instead of texts.",
        )

    def preprocess(self) -> Preprocess:
        """The library's evaluation transform (CheckpointError where the checkpoint does not say it)."""
        return self.blueprint.builder.preprocess(self.blueprint)

    def load_samples(self, spec: DataSpec, progress: Progress = SILENT) -> AnySamples:
        """Images of a folder, dataset or task; a note says which were skipped."""
        if spec.columns is not None:
            raise UsageError(
                f"--text-columns name columns of text, but {self.name} takes images.", hint="Leave them out."
            )
        samples = self._load(spec, progress)
        if samples.skipped_note is not None:
            progress.note(samples.skipped_note)
        return samples

    def _load(self, spec: DataSpec, progress: Progress) -> ImageSamples:
        return load_image_samples(spec, progress)

    def batches(self, samples: AnySamples, options: BatchOptions) -> Sequence[Batch]:
        """Batches on the model's device that decode whenever they are gone through; `list` keeps them.

        Raises UsageError: a size out of range, or a maximum length. DataError: labels that the model has no classes
        for.
        """
        if options.max_length is not None:
            raise UsageError(f"--max-length counts tokens, but {self.name} takes images.", hint="Leave it out.")
        blueprint, labels = self.blueprint, None
        if options.labelled:
            labels = image_class_ids(require_images(samples), options.task, blueprint.label_names, blueprint.num_labels)
        return self._cut(require_images(samples), options.batch_size, self.image.shape, labels)

    def _cut(
        self, samples: ImageSamples, batch_size: int, shape: tuple[int, int, int] | None, labels: Sequence[int] | None
    ) -> Sequence[Batch]:
        name, transform = self.image.input_name, self.preprocess()
        size = min(batch_size, max(1, MOST_PIXELS // (self.image.height * self.image.width)))
        made = image_batches(samples, transform, input_name=name, shape=shape, batch_size=size, labels=labels)
        return made.to(device_of(self.model))

    def read_length(self, asked: int | None) -> int | None:
        """None: images are no texts."""
        del asked
        return None

    def read_limit(self) -> int | None:
        """None: images are no texts."""
        return None

    def fed(self, batches: Iterable[Batch], tokenizer: Any) -> list[Batch]:
        """What the model takes of the batches."""
        del tokenizer
        return fit_inputs(self.model, batches)

    def positive_class(self, samples: AnySamples, task: Task) -> int:
        """The second class."""
        del samples, task
        return 1


@dataclass(frozen=True)
class SceneInput(ImageInput):
    """Pixels under one name, (rows, channels, height, width), for models that put out a class for every pixel."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The model's names of its classes, or their numbers in words."""
        known = self.blueprint.label_names
        return known or tuple(f"class {number}" for number in range(self.blueprint.num_labels))

    def map_decoder(self) -> MapDecoder:
        """How label maps are read, and made of outputs."""
        return self.blueprint.builder.map_decoder(self.blueprint)

    def _load(self, spec: DataSpec, progress: Progress) -> ImageSamples:
        """Images and, to evaluate, label maps whose ids are explained by the task or the image processor."""
        blueprint = self.blueprint

        def explain(task: Task | None) -> LabelIds:
            usual = self.map_decoder().rule
            return explain_ids(task, usual, blueprint.label_names, blueprint.num_labels, spec.ignored)

        return load_scene_samples(spec, explain, progress)

    def batches(self, samples: AnySamples, options: BatchOptions) -> Sequence[Batch]:
        """Batches of images alone: label maps stay with the samples, since they need not be of the images' size.

        Raises UsageError: a size out of range, or a maximum length. DataError: images of several sizes in a batch.
        """
        if options.max_length is not None:
            raise UsageError(f"--max-length counts tokens, but {self.name} takes images.", hint="Leave it out.")
        shape = self.image.shape if self.image.fixed else None
        return self._cut(require_images(samples), options.batch_size, shape, None)


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


def no_classes(name: str, data: str) -> UsageError:
    """The error for class labels and a model of sentence embeddings."""
    return UsageError(
        f"{name} puts out sentence embeddings; the labels of {data} name no classes of it.",
        hint="Pass a task whose labels say how alike two sentences are: --calib stsb-cosine --data PATH.",
    )


def fit_inputs(model: nn.Module, batches: Iterable[Batch]) -> list[Batch]:
    """The batches with only the inputs that the model's forward names, on the model's device."""
    taken, device = inspect.signature(model.forward).parameters, device_of(model)
    return [
        replace(batch, inputs={k: v for k, v in batch.inputs.items() if k in taken}).to(device) for batch in batches
    ]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
