"""What a model of text takes: its example and random inputs, its tokenizer and samples, and batches of them."""

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
from optin_cli.checkpoints.batching import PROBE_ROWS, PROBE_TOKENS, BatchOptions, Inputs, device_of, fit_inputs, seeded
from optin_cli.checkpoints.foreign import explaining, unheard
from optin_cli.checkpoints.libraries.registry import Blueprint, Preprocess
from optin_cli.data.batch import Batch
from optin_cli.data.labels import label_ids, label_sets, value_rows
from optin_cli.data.load import AnySamples, described, require_texts
from optin_cli.data.spec import DataSpec
from optin_cli.data.text.masked import Masking
from optin_cli.data.text.pairs import pair_batches
from optin_cli.data.text.prompts import lower_cased, prompt_tokens, put_before
from optin_cli.data.text.running import RunningText, load_running, window_batches
from optin_cli.data.text.samples import Samples, load_samples
from optin_cli.data.text.searches import load_searches
from optin_cli.data.text.tokenize import INPUTS, make_batches, reserved_positions, usable_length
from optin_cli.errors import CheckpointError, UsageError
from optin_cli.options.common import DEFAULT_LENGTH, DEFAULT_MASK_EVERY, DEFAULT_SEQ_LEN, DEFAULT_WINDOW
from optin_cli.progress import SILENT, Progress
from optin_cli.tasks.schema import SEARCHES, InputKind, Task

TEXT = "input_ids"
MOST_LOGITS = 2**25
"""Numbers that the output of one batch holds, where there is one for every token and word of the vocabulary."""
CONTINUING: Purpose = "next-token-prediction"
"""What models are for that read running text in windows."""
VOCABULARY_HEADS: frozenset[Purpose] = frozenset({"fill-mask", CONTINUING})
"""What models with such outputs are for."""
PIECES = "*.model"
VOCABULARIES = ("tokenizer.json", "vocab.*", PIECES)


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
        """Length that costs are stated for: `asked`, the recorded one, 128, or 512 for models that continue a text.

        Raises UsageError: the model does not hold as many tokens.
        """
        usual = DEFAULT_WINDOW if self.blueprint.purpose == CONTINUING else DEFAULT_SEQ_LEN
        most = self.most or usual
        if asked is None:
            return min(usual, most) if self.recorded is None else self.recorded.seq_len
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
        return self._unpadded(torch.randint(vocabulary or self.vocabulary, shape, generator=seeded(seed)))

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
        ids = torch.randint(least, self.vocabulary, (rows, tokens), generator=seeded(0))
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
        hint = f"Put tokenizer.json and tokenizer_config.json into {folder and folder.resolve()}."
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
        # Unless it is told, transformers asks on the terminal whether code of the folder may run.
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        if self.own_length is not None:
            options["model_max_length"] = self.own_length
        with explaining(f"{self.name} has no usable tokenizer", hint), unheard():
            found = AutoTokenizer.from_pretrained(folder, **options)
            if words and getattr(found, "add_prefix_space", None) is False:
                found = AutoTokenizer.from_pretrained(folder, add_prefix_space=True, **options)
            if sentences is not None and sentences.lower_case:
                found = lower_cased(found)
            found("a")  # damage in what joins and cuts texts shows only now
            if int(found.model_max_length) < 1:
                raise ValueError(f"model_max_length is {found.model_max_length}; expected 1 or more")
        return found

    def preprocess(self) -> Preprocess:
        """Refuse: texts are tokenised."""
        raise CheckpointError(f"{self.name} takes text, so it has no image preprocessing.")

    def load_samples(self, spec: DataSpec, progress: Progress = SILENT) -> AnySamples:
        """Read and select texts of a file, folder or task; errors as of `optin_cli.data.text.samples.load_samples`.

        A model of sentence embeddings reads texts one at a time, so that calibration data of two texts per row has
        one sample per text, unless it is of a named task that makes one sequence of both. A model that continues a text
        reads windows of running text (`optin_cli.data.text.running`), which are its samples.
        """
        samples = self._load(spec)
        progress.read(described(samples))
        return samples

    def _load(self, spec: DataSpec) -> Samples:
        task, path = spec.resolve(self.kind)
        if self.blueprint.purpose == CONTINUING and (task is None or task.kind != "last-word"):
            return load_running(spec, task, path, self.tokenizer(), self.length(spec.length) or DEFAULT_WINDOW)
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
        if isinstance(texts, RunningText):
            return self._windows(texts, options)
        tokenizer = self.tokenizer(words=texts.words is not None)
        length = usable_length(tokenizer, self.most, options.max_length, default=self.own_length or DEFAULT_LENGTH)
        size = self.rows_at_once(options.batch_size, length)
        sentences = self.blueprint.sentences
        prompt = "" if sentences is None else sentences.prompt(options.prompt)
        texts, before = put_before(prompt, texts), prompt_tokens(prompt, tokenizer)
        if options.labelled and task is not None and task.each_alone:
            pairs = pair_batches(texts, task, tokenizer, batch_size=size, max_length=length)
            return self.fit([replace(batch, prompt=before) for batch in pairs], tokenizer)
        if options.labelled and self.blueprint.purpose == "similarity":
            raise no_classes(self.name, texts.name)
        labels = self._labels(texts, task) if options.labelled else None
        found = make_batches(texts, tokenizer, batch_size=size, max_length=length, labels=labels)
        if self.blueprint.purpose == "fill-mask":
            masking = Masking.of(tokenizer, DEFAULT_MASK_EVERY)
            found = [masking.once(batch) for batch in found]
        return self.fit([replace(batch, prompt=before) for batch in found], tokenizer)

    def _windows(self, text: RunningText, options: BatchOptions) -> list[Batch]:
        """Batches of windows; `labelled` gives them the tokens to predict as labels."""
        tokenizer = self.tokenizer()
        size = self.rows_at_once(options.batch_size, text.cutting.length)
        windows = text.windows_for(tokenizer)
        return self.fit(window_batches(windows, batch_size=size, labelled=options.labelled), tokenizer)

    def fit(self, batches: Iterable[Batch], tokenizer: Any) -> list[Batch]:
        """What the model takes of the batches (CheckpointError if its embeddings lack a token of theirs)."""
        fitted = fit_inputs(self.model, [replace(batch, inputs=self._shaped(batch.inputs)) for batch in batches])
        highest = max((int(batch.inputs[TEXT].max()) for batch in fitted if batch.inputs[TEXT].numel()), default=0)
        if highest >= self.vocabulary:
            raise CheckpointError(
                f"The tokenizer of {self.name} has {len(tokenizer)} tokens and gives id {highest}, but the embeddings "
                f"of its model have {self.vocabulary} rows.",
                hint="Resize and save the model where it was made, model.resize_token_embeddings(len(tokenizer)), "
                "or put the model's own tokenizer into the folder.",
            )
        return fitted

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


def no_classes(name: str, data: str) -> UsageError:
    """The error for class labels and a model of sentence embeddings."""
    return UsageError(
        f"{name} puts out sentence embeddings; the labels of {data} name no classes of it.",
        hint="Pass a task whose labels say how alike two sentences are: --calib stsb-cosine --data PATH.",
    )
