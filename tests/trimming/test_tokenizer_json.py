"""Tokenizers with fewer tokens: texts of kept ones become the same tokens, whatever the model of the tokenizer."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from optin_cli.errors import CheckpointError
from optin_cli.trimming.texts import encode, random_texts, script_ids, script_of, used_ids, words_of
from optin_cli.trimming.tokenizer_json import closed, required_ids, tokens_of, with_tokens

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
STEMS = ["walk", "talk", "see", "read", "sing", "größe", "naïve", "море", "книга"]
ENDINGS = ["", "s", "ed", "ing", "er", "ers", "ness", "-like", "'s"]


def corpus(seed=0, count=200):
    draw = random.Random(seed)
    return [
        " ".join(draw.choice(STEMS) + draw.choice(ENDINGS) for _ in range(draw.randint(1, 9))) for _ in range(count)
    ]


def trained(kind):
    """A tokenizer of a kind, trained on the corpus."""
    texts = corpus()
    if kind == "WordPiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=SPECIAL, show_progress=False)
    elif kind == "BPE":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=360, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False
        )
    made.train_from_iterator(texts, trainer)
    ids = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return made


@pytest.fixture(scope="module", params=["WordPiece", "BPE", "Unigram"])
def tokenizer(request):
    return trained(request.param)


def trimmed(tokenizer, texts):
    document = json.loads(tokenizer.to_str())
    kept = sorted(closed(document, required_ids(document) | used_ids(tokenizer, texts)))
    return Tokenizer.from_str(json.dumps(with_tokens(document, kept))), kept


def test_texts_become_the_same_tokens(tokenizer):
    texts = corpus(seed=1, count=6)
    small, kept = trimmed(tokenizer, texts)
    assert len(kept) < tokenizer.get_vocab_size()
    assert small.get_vocab_size() == len(kept)
    asked = [*texts, *random_texts(words_of(texts), [], 300, seed=0)]
    for mine, theirs in zip(encode(tokenizer, asked), encode(small, asked), strict=True):
        assert mine == [kept[number] for number in theirs]
    whole, part = tokenizer.encode(texts[0]), small.encode(texts[0])
    assert whole.tokens == part.tokens and whole.tokens[0] == "[CLS]"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 5))
def test_any_texts_do(tokenizer, seed, count):
    texts = corpus(seed=seed, count=count)
    small, kept = trimmed(tokenizer, texts)
    assert [[kept[n] for n in ids] for ids in encode(small, texts)] == encode(tokenizer, texts)


def test_everything_kept_changes_nothing(tokenizer):
    document = json.loads(tokenizer.to_str())
    ids = sorted(tokens_of(document).values())
    assert ids == list(range(len(ids)))
    assert with_tokens(document, ids) == document


def test_merges_on_the_way_to_a_token_stay():
    merges = [["a", "b"], ["c", "d"], ["ab", "cd"], ["d", "a"]]
    vocabulary = {token: n for n, token in enumerate(["a", "b", "c", "d", "ab", "cd", "abcd", "da"])}
    document = {"model": {"type": "BPE", "vocab": vocabulary, "merges": merges}, "added_tokens": []}
    kept = closed(document, {vocabulary["abcd"]})
    assert kept == set(vocabulary.values()) - {vocabulary["da"]}
    found = with_tokens(document, sorted(kept))
    assert found["model"]["merges"] == merges[:3]
    old = {"model": document["model"] | {"merges": [" ".join(pair) for pair in merges]}, "added_tokens": []}
    assert closed(old, {vocabulary["abcd"]}) == kept
    assert with_tokens(old, sorted(kept))["model"]["merges"] == ["a b", "c d", "ab cd"]


@pytest.mark.parametrize(
    ("processor", "found"),
    [
        ({"type": "BertProcessing", "sep": ["s", 5], "cls": ["c", 3]}, {"sep": ["s", 2], "cls": ["c", 1]}),
        (
            {
                "type": "Sequence",
                "processors": [{"type": "ByteLevel"}, {"type": "R", "sep": ["s", 5], "cls": ["c", 3]}],
            },
            {"processors": [{"type": "ByteLevel"}, {"type": "R", "sep": ["s", 2], "cls": ["c", 1]}]},
        ),
        (None, None),
    ],
)
def test_special_tokens_are_numbered_anew(processor, found):
    document = {
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 3, "s": 5}, "unk_token": "a"},
        "added_tokens": [{"content": "c", "id": 3}, {"content": "s", "id": 5}],
        "post_processor": processor,
        "padding": {"pad_id": 3},
    }
    assert required_ids(document) == {0, 3, 5}
    new = with_tokens(document, [0, 3, 5])
    assert new["padding"] == {"pad_id": 1}
    assert new["added_tokens"] == [{"content": "c", "id": 1}, {"content": "s", "id": 2}]
    assert new["model"]["vocab"] == {"a": 0, "c": 1, "s": 2}
    if found is None:
        assert new["post_processor"] is None
    else:
        assert {key: new["post_processor"][key] for key in found} == found


def test_another_model_is_refused():
    with pytest.raises(CheckpointError, match="is a Riddle"):
        with_tokens({"model": {"type": "Riddle", "vocab": {}}, "added_tokens": []}, [])


def test_scripts():
    assert [script_of(letter) for letter in "aéжΩ漢1 ,"] == [
        "LATIN",
        "LATIN",
        "CYRILLIC",
        "GREEK",
        "CJK",
        None,
        None,
        None,
    ]


def test_a_script_keeps_its_tokens_and_what_is_no_letter(tokenizer):
    latin = script_ids(tokenizer, ["latin"])
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    texts = {number: tokenizer.decoder.decode([token]) for number, token in tokens.items()}
    assert {"walk", "море"} & {text.strip() for text in texts.values()} or tokenizer.get_vocab_size() < 130
    for number, text in texts.items():
        others = {script_of(letter) for letter in text} - {None, "LATIN"}
        assert (number in latin) == (not others) or "\N{REPLACEMENT CHARACTER}" in text
