"""Prompts before texts, and capitals, as models of sentence embeddings want them."""

from dataclasses import replace
from typing import Any

from optin_cli.data.text.samples import Samples


def put_before(prompt: str, samples: Samples) -> Samples:
    """The samples with a prompt before each of their texts."""
    if not prompt:
        return samples
    return replace(samples, texts=[tuple(prompt + text for text in texts) for texts in samples.texts])


def prompt_tokens(prompt: str, tokenizer: Any) -> int:
    """How many tokens a text begins with that are the prompt's, with the special ones before it."""
    if not prompt:
        return 0
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - int(ids[-1] in tokenizer.all_special_ids)


def lower_cased(tokenizer: Any) -> Any:
    """The tokenizer, changed to take capitals for small letters."""
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    others = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *others])
    return tokenizer
