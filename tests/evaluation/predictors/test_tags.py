"""Token classification: words tagged by their first token, measured against a loop over single sentences."""

from dataclasses import replace

import pytest
import torch
from helpers.models import save_checkpoint, tiny_tokenizer
from helpers.running import call, write_rows

import optin_cli
from optin_cli.artifacts.base import parse
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.data.text.tokenize import cut_batches, encode
from optin_cli.errors import DataError
from optin_cli.evaluation.entities import find_entities
from optin_cli.evaluation.predictors.tags import word_classes
from optin_cli.options.evaluation import EvalOptions

NAMES = ["O", "B-PER", "I-PER", "B-LOC"]
SENTENCES = [
    (["a", "films", "good", "b"], ["B-PER", "I-PER", "O", "B-LOC"]),
    (["films", "c"], ["B-LOC", "O"]),
    (["d", "e", "films", "films", "f", "g"], ["O", "B-PER", "I-PER", "I-PER", "O", "O"]),
    (["h"], ["B-PER"]),
]
"""The tokenizer makes two tokens of "films"."""
OPTIONS = EvalOptions(latency_runs=0, batch_size=2, seq_len=8)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    return load_checkpoint(
        save_checkpoint(tmp_path_factory.mktemp("t") / "tagger", head="tokens", num_labels=4, **names)
    )


@torch.no_grad()
def tagged(checkpoint, words):
    """Tags of one sentence, fed alone."""
    tokenizer = checkpoint.input.tokenizer()
    found = tokenizer(words, is_split_into_words=True, return_tensors="pt")
    classes = checkpoint.model(**found).logits[0].argmax(dim=-1).tolist()
    return [NAMES[classes[found.word_ids().index(word)]] for word in range(len(words))]


def rows_of(sentences, column="ner_tags"):
    return [{"tokens": words, column: tags} for words, tags in sentences]


def by_hand(checkpoint, sentences):
    """Entity F1, precision and recall, and accuracy; words labelled None do not count."""
    hits = mine = theirs = right = count = 0
    for words, tags in sentences:
        pairs = [(a, b) for a, b in zip(tagged(checkpoint, words), tags, strict=True) if b is not None]
        predicted, labels = (find_entities([pair[side] for pair in pairs]) for side in range(2))
        hits, mine, theirs = hits + len(predicted & labels), mine + len(predicted), theirs + len(labels)
        right, count = right + sum(a == b for a, b in pairs), count + len(pairs)
    return [2 * hits / (mine + theirs), hits / max(mine, 1), hits / theirs, right / count]


def learnt(checkpoint):
    """The sentences with what the model says of every other one as labels, so that some are right."""
    return [(w, tagged(checkpoint, w) if n % 2 else t) for n, (w, t) in enumerate(SENTENCES)]


def test_entities_and_words_are_measured(tagger, tmp_path):
    sentences = learnt(tagger)
    path = write_rows(tmp_path / "d.jsonl", rows_of(sentences))
    result = optin_cli.evaluate(tagger, data=path, against=tagger, options=OPTIONS)
    assert (result.task, list(result.metrics)) == (
        "token-classification",
        ["entity_f1", "entity_precision", "entity_recall", "word_accuracy"],
    )
    assert [*result.metrics.values()] == pytest.approx(by_hand(tagger, sentences))
    assert 0 < result.metrics["entity_f1"] < 1 and result.metric.name == "entity_f1" and result.standard_error > 0
    assert (result.against.agreement, result.against.kl, result.truncated) == (1, pytest.approx(0, abs=1e-9), 0)
    conll = tmp_path / "d.conll"
    conll.write_text("\n".join("".join(f"{w} {t}\n" for w, t in zip(*pair, strict=True)) for pair in sentences))
    assert optin_cli.evaluate(tagger, data=conll, options=OPTIONS).metrics == pytest.approx(result.metrics)


def test_words_without_a_label_do_not_count(tagger, tmp_path):
    sentences = learnt(tagger)
    numbers = [
        (words, [-100 if w == "c" else NAMES.index(t) for w, t in zip(words, tags, strict=True)])
        for words, tags in sentences
    ]
    fewer = [(words, [None if w == "c" else t for w, t in zip(words, tags, strict=True)]) for words, tags in sentences]
    path = write_rows(tmp_path / "d.jsonl", rows_of(numbers, "labels"))
    found = optin_cli.evaluate(tagger, "token-classification", data=path, options=OPTIONS)
    assert [*found.metrics.values()] == pytest.approx(by_hand(tagger, fewer))
    marked = [(words, [None if t == "O" else t for t in tags]) for words, tags in fewer]
    without = optin_cli.evaluate(tagger, data=path, options=replace(OPTIONS, ignore_index=(0,)))
    assert [*without.metrics.values()] == pytest.approx(by_hand(tagger, marked))
    nothing = write_rows(tmp_path / "n.jsonl", [{"tokens": ["a"], "labels": [-100]}])
    with pytest.raises(DataError, match="No word has a label that counts"):
        optin_cli.evaluate(tagger, data=nothing, options=OPTIONS)


def test_words_that_are_cut_off_are_counted_and_said(tagger, tmp_path):
    path = write_rows(tmp_path / "d.jsonl", rows_of(SENTENCES))
    run = call(
        *("eval", tagger.blueprint.folder, "--data", path, "--max-length", 6, "--latency-runs", 0, "--json"),
    )
    found = parse(Evaluation, run.out, "stdout")
    assert (run.code, found.truncated, found.options["max_length"]) == (0, 2, 6)
    assert "2 of 4 samples were truncated to 6 tokens" in run.err and "--max-length 48" in run.err


def test_tags_without_a_place_have_no_entities(tmp_path):
    names = {"id2label": {0: "NOUN", 1: "VERB", 2: "X"}, "label2id": {"NOUN": 0, "VERB": 1, "X": 2}}
    folder = save_checkpoint(tmp_path / "pos", head="tokens", num_labels=3, **names)
    path = write_rows(tmp_path / "d.jsonl", [{"words": ["a", "b"], "tags": ["noun", "VERB"]}])
    found = optin_cli.evaluate(folder, data=path, options=OPTIONS)
    assert list(found.metrics) == ["word_accuracy"] and found.metric.name == "word_accuracy"


def test_the_datas_names_stand_for_a_models_numbers(tmp_path):
    import datasets

    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "plain", head="tokens", num_labels=4))
    features = {
        "tokens": datasets.Sequence(datasets.Value("string")),
        "ner_tags": datasets.Sequence(datasets.ClassLabel(names=NAMES)),
    }
    rows = datasets.Dataset.from_list(rows_of(learnt(checkpoint)), features=datasets.Features(features))
    rows.save_to_disk(str(tmp_path / "saved"))
    found = optin_cli.evaluate(checkpoint, data=tmp_path / "saved", options=OPTIONS)
    assert [*found.metrics.values()] == pytest.approx(by_hand(checkpoint, learnt(checkpoint)))


def test_texts_are_words_apart_by_spaces(tagger, tmp_path):
    rows = [{"text": " ".join(words), "tags": " ".join(tags)} for words, tags in learnt(tagger)]
    found = optin_cli.evaluate(tagger, data=write_rows(tmp_path / "d.jsonl", rows), options=OPTIONS)
    assert [*found.metrics.values()] == pytest.approx(by_hand(tagger, learnt(tagger)))


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_first_token_of_a_word_tags_it(side, tagger, tmp_path):
    from helpers.datasets import load_texts

    samples = load_texts(write_rows(tmp_path / "d.jsonl", [{"tokens": words} for words, _ in SENTENCES]))
    tokenizer = tiny_tokenizer(padding_side=side)
    found = encode(samples, tokenizer, 48)
    batches = cut_batches(found.rows, tokenizer, batch_size=2)
    ids = torch.cat([batch.inputs["input_ids"][batch.token_mask] for batch in batches])
    tags = word_classes(torch.nn.functional.one_hot(ids, 99), batches, found.words)
    expected = [{n: tokenizer(word)["input_ids"][1] for n, word in enumerate(words)} for words in samples.words]
    assert tags == expected


def test_words_have_the_space_that_a_text_has_before_them(tmp_path):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizer

    inner = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    inner.train_from_iterator(["good film"] * 9, vocab_size=300, special_tokens=special, show_progress=False)
    inner.save_model(str(tmp_path))
    folder = save_checkpoint(tmp_path / "r", "roberta", "tokens", vocab_size=300)
    for path in folder.glob("*token*"):
        path.unlink()
    files = {"vocab": str(tmp_path / "vocab.json"), "merges": str(tmp_path / "merges.txt")}
    RobertaTokenizer(**files).save_pretrained(folder)
    found = load_checkpoint(folder).input
    words, text = ["film", "good", "film"], " film good film"
    expected = found.tokenizer()(text)["input_ids"]
    assert found.tokenizer(words=True)(words, is_split_into_words=True)["input_ids"] == expected
    assert found.tokenizer()(words, is_split_into_words=True)["input_ids"] != expected
