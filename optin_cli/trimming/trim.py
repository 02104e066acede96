"""Trim a checkpoint's vocabulary into a stock folder, proved to read texts as before and to compute the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from optin_cli.artifacts.base import Source, Totals
from optin_cli.artifacts.vocabulary import Vocabulary, VocabularyProof
from optin_cli.checkpoints.batching import BatchOptions, Inputs
from optin_cli.checkpoints.checkpoint import Checkpoint, as_checkpoint, load
from optin_cli.checkpoints.fresh import Reload, reloading
from optin_cli.checkpoints.save import save_cut
from optin_cli.checkpoints.verify import largest_difference, require_equal, run_probe, tolerance_for
from optin_cli.data.load import require_texts
from optin_cli.data.spec import DataSpec
from optin_cli.data.text.samples import Samples
from optin_cli.errors import CertificateError, CheckpointError, DataError, UsageError, first_line
from optin_cli.files import atomic_folder, check_apart, sha256_of
from optin_cli.model.costs import count_totals
from optin_cli.model.plan import Plan
from optin_cli.options.trim import TrimOptions
from optin_cli.progress import SILENT, Progress
from optin_cli.trimming.embeddings import settings_for, special_ids, with_tokens
from optin_cli.trimming.texts import encode, letters_of, random_texts, script_ids, used_ids, words_of
from optin_cli.trimming.tokenizer_json import closed, required_ids
from optin_cli.trimming.tokenizer_json import with_tokens as tokenizer_with
from optin_cli.version import __version__

RECORD = "vocabulary.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
STALE = ("vocab.*", "merges.txt", "*.model", "added_tokens.json")
"""Files that say the same as tokenizer.json, with the tokens and ids of before."""
ROWS = 16
"""Texts whose outputs are compared."""


@dataclass(frozen=True)
class Corpus:
    """Texts whose tokens stay. samples: those of the data, None without; more: lines of a file."""

    samples: Samples | None
    more: list[str]

    @property
    def texts(self) -> list[str]:
        """All texts, each of a pair for itself."""
        pairs = [] if self.samples is None else self.samples.texts
        return [text for pair in pairs for text in pair] + self.more


def trim(
    checkpoint: Checkpoint | str | Path,
    output: str | Path,
    corpus: DataSpec | str | Path | None = None,
    *,
    options: TrimOptions | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Vocabulary:
    """Write a checkpoint whose model knows only the tokens that texts use, as a folder that its library loads.

    Args:
        output: appears only when everything succeeded.
        corpus: texts whose tokens stay: a task name, or a file or folder.

    Raises:
        CheckpointError: it takes no text, is pruned already, or has a tokenizer of another kind than
            `tokenizers` reads. UsageError: nothing says what stays. CertificateError: a text is read otherwise, or the
            reloaded folder computes something else; nothing is written.
    """
    opened, options = as_checkpoint(checkpoint), options or TrimOptions()
    original = _tokenizer_of(opened)
    read = _read(opened, DataSpec.of(corpus), options, progress)
    trimming = Trimming(opened, original, tuple(_kept(opened, original, read, options)))
    modules = [opened.blueprint.library, type(opened.model).__module__]
    check_apart(Path(output), [opened.blueprint.folder])
    with atomic_folder(Path(output), force=force) as folder, reloading(modules) as reload:
        progress.update(1, 4, "writing")
        trimming.write(folder)
        progress.update(2, 4, "comparing tokens")
        small = load(folder, device="cpu")
        letters = letters_of(original, set(trimming.kept), options.keep_script)
        trials = random_texts(words_of(read.texts), letters, options.trials, options.seed)
        for what, texts in (("text", read.texts), ("random text", trials)):
            trimming.require_same_tokens(what, texts, _tokenizer_of(small))
        progress.update(3, 4, "certifying in a fresh process")
        rows = [*read.texts, *trials][:ROWS]
        loader, difference, tolerance = trimming.compare(folder, rows, reload)
        proof = VocabularyProof(
            texts=len(read.texts),
            trials=len(trials),
            rows=len(rows),
            loader=loader,
            difference=difference,
            tolerance=tolerance,
        )
        record = _record(trimming, small, read, options, proof)
        (folder / RECORD).write_text(record.dump(), encoding="utf-8")
    return record


@dataclass(frozen=True)
class Trimming:
    """A checkpoint and the ids that its vocabulary keeps, ascending. tokenizer: of `tokenizers`."""

    checkpoint: Checkpoint
    tokenizer: Any
    kept: tuple[int, ...]

    @property
    def size(self) -> int:
        """Tokens before."""
        return int(self.checkpoint.blueprint.config.vocab_size)

    @property
    def names(self) -> list[str]:
        """Names of the outputs that are compared."""
        return [rule.name for rule in self.checkpoint.structure.outputs]

    def write(self, folder: Path) -> None:
        """Write the model, its tokenizer and what else goes along."""
        blueprint, document = self.checkpoint.blueprint, json.loads(self.tokenizer.to_str())
        settings = settings_for(blueprint.config, self.kept)
        model = with_tokens(self.checkpoint.model, self.kept, settings)
        save_cut(self.checkpoint, model, Plan(root=self.checkpoint.root), folder, settings=settings)
        for path in [found for pattern in STALE for found in folder.glob(pattern)]:
            path.unlink()
        _renumber_added(folder / TOKENIZER_CONFIG, self.kept)
        written = json.dumps(tokenizer_with(document, self.kept), ensure_ascii=False)
        (folder / TOKENIZER).write_text(written, encoding="utf-8")

    def require_same_tokens(self, what: str, texts: Sequence[str], tokenizer: Any) -> None:
        """Refuse a tokenizer that makes other tokens of a text (CertificateError)."""
        theirs = ([self.kept[number] for number in ids] for ids in encode(tokenizer, texts))
        for text, mine, other in zip(texts, encode(self.tokenizer, texts), theirs, strict=True):
            if mine != other:
                raise CertificateError(
                    f"With {len(self.kept)} tokens the {what} {text[:80]!r} becomes other tokens than before. "
                    "Nothing was written.",
                    hint="This is a defect of optin; please report it with the tokenizer's name.",
                )

    def compare(self, folder: Path, texts: Sequence[str], reload: Reload) -> tuple[str, float, float]:
        """Compare outputs for texts: what loaded the folder, the largest difference, and the tolerance for it.

        Raises:
            CertificateError: the folder does not load, or computes something else.
        """
        blueprint = self.checkpoint.blueprint
        model: Any = self.checkpoint.model
        probe = _probe(self.checkpoint, texts)
        expected = run_probe(model, probe, self.names)
        if model.get_output_embeddings() is not None:
            wide = {name for name, tensor in expected.items() if tensor.shape[-1] == self.size}
            expected = {n: t[..., list(self.kept)] if n in wide else t for n, t in expected.items()}
        numbers = torch.full((self.size,), -1)
        numbers[list(self.kept)] = torch.arange(len(self.kept))
        mapped = {**probe, "input_ids": numbers[probe["input_ids"]]}
        loader, loading = blueprint.builder.reloading(blueprint, plain=True)
        difference = largest_difference(expected, reload(folder, loading, mapped, self.names))
        tolerance = tolerance_for(expected)
        require_equal("The trimmed folder against the original", difference, tolerance)
        return loader, difference, tolerance


def _tokenizer_of(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer, of `tokenizers` (CheckpointError if it has none of that kind, or is pruned)."""
    blueprint = checkpoint.blueprint
    if blueprint.plan is not None:
        raise CheckpointError(
            f"{checkpoint.name} is pruned already, and says its shapes in a plan.",
            hint="Trim the original's vocabulary first, then score, search and prune the result.",
        )
    found = checkpoint.input.tokenizer()
    if not getattr(found, "is_fast", False):
        raise CheckpointError(
            f"{checkpoint.name} has a tokenizer without {TOKENIZER} ({type(found).__name__}), which cannot be trimmed.",
            hint=f"Load it with AutoTokenizer and save it, so that {TOKENIZER} is there.",
        )
    backend = found.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read(checkpoint: Checkpoint, spec: DataSpec, options: TrimOptions, progress: Progress) -> Corpus:
    """The texts whose tokens stay."""
    samples = None
    if spec.is_named:
        wanted = replace(spec, limit=options.samples, seed=options.seed)
        samples = require_texts(checkpoint.input.load_samples(wanted, progress))
    more: list[str] = []
    if options.keep_tokens is not None:
        try:
            more = options.keep_tokens.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{options.keep_tokens} cannot be read as text: {first_line(error)}") from error
    if samples is None and not more and not options.keep_script:
        raise UsageError(
            "Nothing says which tokens stay.",
            hint="Pass --calib with texts, --keep-tokens FILE or --keep-script latin.",
        )
    return Corpus(samples, [line for line in more if line.strip()])


def _kept(checkpoint: Checkpoint, tokenizer: Any, read: Corpus, options: TrimOptions) -> list[int]:
    """Ids that stay, ascending. Those up to padding's keep their numbers, from which some models count positions."""
    config, document = checkpoint.blueprint.config, json.loads(tokenizer.to_str())
    special = special_ids(config, config.vocab_size)
    kept = required_ids(document) | set(special.values()) | used_ids(tokenizer, read.texts)
    kept |= set(range(special.get("pad_token_id", -1) + 1))
    if options.keep_script:
        kept |= script_ids(tokenizer, options.keep_script)
    kept = closed(document, kept)
    if max(kept) >= config.vocab_size:
        raise CheckpointError(
            f"The tokenizer of {checkpoint.name} gives ids up to {max(kept)}, but its embedding has "
            f"{config.vocab_size} rows."
        )
    return sorted(kept)


def _renumber_added(path: Path, kept: Sequence[int]) -> None:
    """Give the added tokens of a tokenizer's config their new ids, where it lists them."""
    if not path.is_file():
        return
    raw = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(listed := raw.get("added_tokens_decoder"), dict):
        new = {str(old): str(number) for number, old in enumerate(kept)}
        raw["added_tokens_decoder"] = {new[old]: token for old, token in listed.items() if old in new}
        path.write_text(json.dumps(raw, indent=2, ensure_ascii=False), encoding="utf-8")


def _probe(checkpoint: Checkpoint, texts: Sequence[str]) -> Inputs:
    """Padded inputs of texts, with the original's ids."""
    samples = Samples("probe", "all", [(text,) for text in texts], None, None, "", len(texts))
    (batch,) = checkpoint.input.batches(samples, BatchOptions(len(texts)))
    return {name: tensor.cpu() for name, tensor in batch.inputs.items()}


def _record(
    trimming: Trimming, small: Checkpoint, read: Corpus, options: TrimOptions, proof: VocabularyProof
) -> Vocabulary:
    opened = trimming.checkpoint
    inputs = {role: source.published for role, source in opened.sources.items()}
    if read.samples is not None:
        inputs["corpus"] = Source(name=read.samples.name, sha256=read.samples.sha256)
    if options.keep_tokens is not None:
        inputs["keep_tokens"] = Source(name=options.keep_tokens.name, sha256=sha256_of(options.keep_tokens))
    return Vocabulary(
        optin_version=__version__,
        options={
            "keep_script": [*options.keep_script],
            "samples": options.samples,
            "trials": options.trials,
            "seed": options.seed,
        },
        inputs=inputs,
        model_class=opened.blueprint.model_class,
        tokens_before=trimming.size,
        tokens_after=len(trimming.kept),
        before=_totals(opened),
        after=_totals(small),
        proof=proof,
    )


def _totals(checkpoint: Checkpoint) -> Totals:
    takes = checkpoint.input
    return count_totals(checkpoint.model, takes.example(takes.workload(takes.length(None))), checkpoint.weight_bytes)
