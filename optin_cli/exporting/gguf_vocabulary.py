"""A tokenizer as llama.cpp holds it: tokens, their kinds, what is merged, and how text is split before that.

Byte-level BPE becomes its `gpt2` vocabulary, BPE with a fallback to bytes, as converted from SentencePiece, its
`llama` vocabulary.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from optin_cli.exporting.registry import ExportError

FILE = Path(__file__).with_name("gguf_splits.json")
DIGITS = {True: r"\p{N}", False: r"\p{N}+"}
"""Numbers digit by digit, or whole."""
GPT2 = "gpt-2"
SPECIAL = ("bos", "eos", "unk", "pad")
SPACE = "▁"
HINT = "The checkpoint itself is as good as before; run it through transformers."


class Split(BaseModel):
    """A way to split text that llama.cpp knows by a name: regular expressions, one after another.

    ignore_merges: whether a piece that is a token stays one, whatever the merges say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    splits: tuple[str, ...]
    ignore_merges: bool = False


@functools.cache
def known_splits() -> tuple[Split, ...]:
    """All that are listed."""
    return TypeAdapter(tuple[Split, ...]).validate_json(FILE.read_bytes())


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary in llama.cpp's terms.

    kind: gpt2 or llama. split: name of the way to split text. kinds: of each token, as `gguf.TokenType` numbers them.
    scores: of each token, the highest of which is merged first; None where `merges` says the order. special: ids by
    role. prefix: whether a space is put before a text. begin, end: whether a token is put before and behind it.
    """

    kind: str
    split: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    scores: tuple[float, ...] | None
    merges: tuple[str, ...]
    special: dict[str, int]
    prefix: bool
    begin: bool
    end: bool
    template: str | None

    def write(self, writer: Any) -> None:
        """Add it to a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model(self.kind)
        writer.add_tokenizer_pre(self.split)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.kinds))
        if self.scores is None:
            writer.add_token_merges(list(self.merges))
        else:
            writer.add_token_scores(list(self.scores))
        for role, number in self.special.items():
            getattr(writer, f"add_{role}_token_id")(number)
        writer.add_add_bos_token(self.begin)
        writer.add_add_eos_token(self.end)
        writer.add_add_space_prefix(self.prefix)
        if self.template is not None:
            writer.add_chat_template(self.template)


def read_vocabulary(tokenizer: Any, size: int, name: str) -> Vocabulary:
    """The vocabulary of a tokenizer of transformers, filled up to `size` tokens; name: of the checkpoint.

    Raises ExportError: llama.cpp does not tokenize so.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(f"The tokenizer of {name} ({type(tokenizer).__name__}) has no tokenizer.json.", hint=HINT)
    raw = json.loads(backend.to_str())
    model = raw["model"]
    if model["type"] != "BPE":
        raise ExportError(
            f"The tokenizer of {name} is a {model['type']}; optin writes byte-level BPE and SentencePiece BPE for "
            "llama.cpp.",
            hint=HINT,
        )
    bytewise = bool(model.get("byte_fallback"))
    prefix = _has_prefix(raw, name) if bytewise else False
    split = "default" if bytewise else _split_of(raw, name)
    tokens, kinds = _tokens(raw, size, bytewise=bytewise, name=name)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    special = {role: getattr(tokenizer, f"{role}_token_id", None) for role in SPECIAL}
    ids = tokenizer("a").input_ids
    return Vocabulary(
        kind="llama" if bytewise else "gpt2",
        split=split,
        tokens=tokens,
        kinds=kinds,
        scores=_scores(tokens, merges) if bytewise else None,
        merges=tuple(merges),
        special={role: int(number) for role, number in special.items() if number is not None},
        prefix=prefix,
        begin=special["bos"] is not None and ids[0] == special["bos"],
        end=special["eos"] is not None and ids[-1] == special["eos"],
        template=_template(tokenizer),
    )


def _template(tokenizer: Any) -> str | None:
    """The chat template, the default one of several."""
    found = getattr(tokenizer, "chat_template", None)
    return found.get("default") if isinstance(found, dict) else found


def _tokens(raw: Any, size: int, *, bytewise: bool, name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Tokens in the order of their ids, and their kinds; ids without one get a name that no text has."""
    from gguf import TokenType

    by_id = {number: (token, TokenType.NORMAL) for token, number in raw["model"]["vocab"].items()}
    if bytewise:
        by_id |= {n: (token, TokenType.BYTE) for n, (token, _) in by_id.items() if _is_byte(token)}
    unknown = raw["model"].get("unk_token")
    by_id |= {n: (token, TokenType.UNKNOWN) for n, (token, _) in by_id.items() if bytewise and token == unknown}
    for added in raw["added_tokens"]:
        if by_id.get(added["id"], ("", None))[1] not in (TokenType.UNKNOWN, TokenType.BYTE):
            by_id[added["id"]] = (added["content"], TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    if by_id and max(by_id) >= size:
        raise ExportError(
            f"The tokenizer of {name} gives ids up to {max(by_id)}, but its embeddings have {size} rows.",
            hint="Resize and save the model where it was made, model.resize_token_embeddings(len(tokenizer)).",
        )
    found = [by_id.get(number, (f"[PAD{number}]", TokenType.UNUSED)) for number in range(size)]
    return tuple(token for token, _ in found), tuple(int(kind) for _, kind in found)


def _is_byte(token: str) -> bool:
    """Whether a token stands for a byte: <0x0A>."""
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(tokens: Sequence[str], merges: Sequence[str]) -> tuple[float, ...]:
    """Scores by which llama.cpp merges in the order of `merges`: of a token, that of the first that makes it."""
    first: dict[str, int] = {}
    for number, pair in enumerate(merges):
        first.setdefault(pair.replace(" ", "", 1), number)
    return tuple(-float(first.get(token, len(merges))) for token in tokens)


def _steps(raw: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer."""
    whole = raw.get(key)
    if whole is None:
        return []
    inner = whole.get("normalizers", whole.get("pretokenizers"))
    return [whole] if inner is None else list(inner)


def _has_prefix(raw: Any, name: str) -> bool:
    """Whether a tokenizer from SentencePiece puts a space before a text (ExportError if it does more than that)."""
    found = False
    for step in [*_steps(raw, "normalizer"), *_steps(raw, "pre_tokenizer")]:
        kind = step["type"]
        if kind == "Prepend" and step["prepend"] == SPACE:
            found = True
        elif kind == "Metaspace" and step["replacement"] == SPACE:
            found = found or step["prepend_scheme"] != "never"
        elif not (kind == "Replace" and step["content"] == SPACE) and not (
            kind == "Split" and step["pattern"] == {"String": " "}
        ):
            raise _unknown_step(name, step)
    return found


def _split_of(raw: Any, name: str) -> str:
    """Llama.cpp's name for how a byte-level tokenizer splits text (ExportError if it has none)."""
    for step in _steps(raw, "normalizer"):
        if step["type"] != "NFC":  # llama.cpp takes texts for normalized
            raise _unknown_step(name, step)
    found: list[str] = []
    gpt2 = next(split.splits for split in known_splits() if split.name == GPT2)
    for step in _steps(raw, "pre_tokenizer"):
        kind = step["type"]
        if kind == "Digits":
            found.append(DIGITS[bool(step["individual_digits"])])
        elif kind == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
            found.append(step["pattern"]["Regex"])
        elif kind == "ByteLevel" and not step["add_prefix_space"]:
            found += gpt2 if step["use_regex"] else ()
        else:
            raise _unknown_step(name, step)
    merging = bool(raw["model"].get("ignore_merges"))
    for split in known_splits():
        if (split.splits, split.ignore_merges) == (tuple(found), merging):
            return split.name
    raise ExportError(
        f"The tokenizer of {name} splits text by {' then '.join(map(repr, found)) or 'nothing'}"
        f"{' and keeps pieces that are tokens' if merging else ''}, and optin knows no pre-tokenizer of llama.cpp "
        f"that does; it knows {', '.join(split.name for split in known_splits())}.",
        hint=HINT,
    )


def _unknown_step(name: str, step: dict[str, Any]) -> ExportError:
    """The error for a step of a tokenizer that llama.cpp does not have."""
    said = ", ".join(f"{key} = {value!r}" for key, value in step.items() if key != "type")
    return ExportError(
        f"The tokenizer of {name} has a step {step['type']}{f' ({said})' if said else ''}, which llama.cpp lacks.",
        hint=HINT,
    )
