"""Prompts before texts, the tokens that are theirs, and capitals."""

import pytest
from helpers.models import tiny_tokenizer

from optin_cli.data.text.prompts import lower_cased, prompt_tokens, put_before
from optin_cli.data.text.samples import Samples


def test_a_prompt_stands_before_every_text():
    samples = Samples("d", "all", [("a b", "c"), ("d", "e")], None, None, "0" * 64, 2)
    assert put_before("good ", samples).texts == [("good a b", "good c"), ("good d", "good e")]
    assert put_before("", samples) is samples


@pytest.mark.parametrize(("prompt", "tokens"), [("", 0), ("good film ", 3), ("a ", 2)])
def test_tokens_of_a_prompt_are_counted_with_the_special_one_before_them(prompt, tokens):
    assert prompt_tokens(prompt, tiny_tokenizer()) == tokens


def test_capitals_become_small_before_all_else():
    from tokenizers import normalizers

    tokenizer = tiny_tokenizer()
    expected = tokenizer("good film")["input_ids"]
    assert tokenizer("Good FILM")["input_ids"] != expected
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("film", "bad")
    assert lower_cased(tokenizer)("Good FILM")["input_ids"] == tokenizer("good bad")["input_ids"]
