"""Which tokens texts use, which belong to a script, and random texts of what is kept."""

from __future__ import annotations

import random
import string
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from optin_cli.errors import UsageError, did_you_mean

UNDECODABLE = "\N{REPLACEMENT CHARACTER}"
LONGEST_WORD, LONGEST_TEXT = 12, 16
"""Letters of a random word, and words of a random text."""


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts without special tokens, uncut. tokenizer: of `tokenizers`."""
    return [found.ids for found in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def words_of(texts: Iterable[str]) -> list[str]:
    """Words between blanks, sorted."""
    return sorted({word for text in texts for word in text.split()})


def used_ids(tokenizer: Any, texts: Sequence[str]) -> set[int]:
    """Ids in the texts, and in each of their words with and without a blank before it."""
    words = words_of(texts)
    sources = [texts, words, [f" {word}" for word in words], list(string.printable)]
    return {number for source in sources for ids in encode(tokenizer, source) for number in ids}


def script_of(letter: str) -> str | None:
    """The script of a letter, as its Unicode name begins: LATIN of é. None of what is no letter, or has no name."""
    return unicodedata.name(letter, "").partition(" ")[0] or None if letter.isalpha() else None


def script_ids(tokenizer: Any, scripts: Collection[str]) -> set[int]:
    """Ids of the tokens whose letters are all of the scripts; those of less than a character stay too.

    Raises:
        UsageError: no letter of any token is of a script.
    """
    wanted = {name.upper() for name in scripts}
    found, seen = set(), set()
    for token, number in tokenizer.get_vocab().items():
        text = tokenizer.decoder.decode([token]) if tokenizer.decoder else token
        used = {name for letter in f"{text}{token}" if (name := script_of(letter))}
        own = {name for letter in text if (name := script_of(letter))}
        seen |= used
        if UNDECODABLE in text or own <= wanted:
            found.add(number)
    if missing := sorted(wanted - seen):
        known = sorted(name.lower() for name in seen)
        raise UsageError(
            f"The tokenizer has no token of the script {missing[0].lower()!r}.",
            hint=did_you_mean(missing[0].lower(), known),
        )
    return found


def letters_of(tokenizer: Any, kept: Collection[int], scripts: Collection[str]) -> list[str]:
    """Letters of the scripts that are kept tokens by themselves, sorted."""
    wanted = {name.upper() for name in scripts}
    texts = (
        tokenizer.decoder.decode([t]) if tokenizer.decoder else t for t, n in tokenizer.get_vocab().items() if n in kept
    )
    return sorted({text for text in map(str.strip, texts) if len(text) == 1 and script_of(text) in wanted})


def random_texts(words: Sequence[str], letters: Sequence[str], count: int, seed: int) -> list[str]:
    """Texts of random words, of which each is one of `words` or, where letters are given, made of those."""
    draw = random.Random(seed)

    def word() -> str:
        if letters and (not words or draw.random() < 0.5):
            return "".join(draw.choices(letters, k=draw.randint(1, LONGEST_WORD)))
        return draw.choice(words)

    return [" ".join(word() for _ in range(draw.randint(1, LONGEST_TEXT))) for _ in range(count)]
