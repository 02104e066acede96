"""`optin trim`: a stock folder that reads texts as before, scored and pruned like any other."""

import json
from pathlib import Path

import pytest
import torch
from helpers.models import make_inputs, save_checkpoint, tiny_tokenizer
from helpers.running import QUICK, call, done, tree, write_rows

import optin_cli
from optin_cli.artifacts.base import parse
from optin_cli.artifacts.vocabulary import Vocabulary
from optin_cli.checkpoints.checkpoint import load
from optin_cli.errors import CheckpointError
from optin_cli.trimming.embeddings import settings_for, special_ids, token_parameters, with_tokens

FEW = ["a b c", "b d", "c c d a"]


@pytest.fixture
def few(here):
    return write_rows(here / "few.jsonl", [{"text": text} for text in FEW])


def record_of(folder):
    return parse(Vocabulary, Path(folder, "vocabulary.json").read_bytes(), "record")


def test_it_writes_a_stock_folder_with_fewer_tokens(made, few):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = done("trim", made.bert, "--calib", few, "-o", "small")
    assert run.out == "small/\n" and "tokenize as before" in run.err
    record = record_of("small")
    assert record.tokens_after < record.tokens_before
    assert record.proof.difference <= record.proof.tolerance
    assert (record.proof.texts, record.proof.trials, record.proof.rows) == (3, 10_000, 16)
    assert set(record.inputs) == {"checkpoint", "corpus"}
    config = json.loads(Path("small/config.json").read_text())
    assert config["vocab_size"] == record.tokens_after and "auto_map" not in config
    outputs = []
    for folder in (made.bert, "small"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            outputs.append(model(**tokenizer(FEW, padding=True, return_tensors="pt")).logits)
    torch.testing.assert_close(*outputs)
    assert not Path("small/vocab.txt").exists()


def test_the_result_goes_through_the_pipeline(made, few):
    done("trim", made.bert, "--calib", few, "-o", "small")
    done("score", "small", "--calib", few, *QUICK, "-o", "s.safetensors")
    done("search", "s.safetensors", "--keep-flops", "0.6", "-o", "m.json")
    done("prune", "small", "--mask", "m.json", "--no-refit", "-o", "smaller")
    again = call("trim", "smaller", "--calib", few)
    assert again.code == 1 and "is pruned already" in again.err
    shown = done("inspect", "small/vocabulary.json").out
    assert "optin.vocabulary/1" in shown and f"{record_of('small').tokens_after:,}" in shown


def test_it_is_compared_with_the_original_sample_by_sample(made, here):
    done("trim", made.bert, "--calib", made.texts, "-o", "small")
    data = ("--task", "sst2", "--data", made.train, "--latency-runs", "0", "--json")
    run = done("eval", "small", *data, "--against", made.bert)
    against = json.loads(run.out)["against"]
    assert against["agreement"] == 1
    assert against["kl"] < 1e-9
    assert against["drop"] == 0


def test_words_of_a_file_and_letters_of_a_script_stay(made, here):
    Path("words.txt").write_text("a b\n\nc\n")
    done("trim", made.bert, "--keep-tokens", "words.txt", "-o", "words")
    done("trim", made.bert, "--keep-script", "latin", "-o", "latin")
    assert record_of("words").tokens_after < record_of("latin").tokens_after <= record_of("latin").tokens_before
    assert record_of("words").inputs["keep_tokens"].name == "words.txt"


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "distilbert", "electra"])
def test_every_family_computes_the_same(family, here, few):
    folder = save_checkpoint(here / family, family, num_labels=2)
    tiny_tokenizer(model_max_length=40).save_pretrained(folder)
    record = optin_cli.trim(folder, here / "small", few)
    assert record.proof.difference <= record.proof.tolerance
    assert load(here / "small").blueprint.config.pad_token_id == load(folder).blueprint.config.pad_token_id


@pytest.mark.parametrize(
    ("family", "head"),
    [
        *((family, head) for family in ("bert", "mpnet", "modernbert") for head in ("masked", "base")),
        ("bert", "pretraining"),
    ],
)
def test_models_that_fill_in_masked_tokens_are_trimmed(family, head, here, few):
    folder = save_checkpoint(here / family, family, "masked" if head == "base" else head)
    opened = load(folder, as_class="AutoModel" if head == "base" else None)
    before = opened.blueprint.config.vocab_size
    record = optin_cli.trim(opened, here / "small", few)
    assert record.tokens_after < before and record.proof.difference <= record.proof.tolerance
    small = load(here / "small")
    assert small.blueprint.model_class == opened.blueprint.model_class
    words = small.model.get_input_embeddings().weight
    assert len(words) == record.tokens_after
    if head != "base":
        assert small.model.get_output_embeddings().weight is words


def test_heads_over_the_vocabulary_lose_their_rows_and_stay_tied():
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    model = BertForMaskedLM(config).eval()
    kept = [0, 3, 4, 9, 39]
    names = token_parameters(model)
    assert {name.rpartition(".")[2] for name in names} == {"weight", "bias"}
    small = with_tokens(model, kept, settings_for(config, kept))
    assert small.get_output_embeddings().weight is small.get_input_embeddings().weight
    inputs = make_inputs(2, 6, padding=0)
    ids = torch.randint(len(kept), inputs["input_ids"].shape)
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor(kept)[ids]).logits[..., kept]
        torch.testing.assert_close(small(input_ids=ids).logits, theirs)
    assert model.config.vocab_size == 40
    assert special_ids(config, 40) == {"pad_token_id": 0}


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ((), 2, "Nothing says which tokens stay"),
        (("--keep-script", "klingon"), 2, "klingon"),
        (("--keep-tokens", "missing.txt"), 1, "missing.txt cannot be read"),
        (("--keep-script", "latin", "-o", "-"), 2, "cannot go to stdout"),
    ],
)
def test_refusals(made, here, more, code, words):
    run = call("trim", made.bert, *more)
    assert (run.code, tree(here)) == (code, {})
    assert words in run.err


def test_images_have_no_vocabulary(image_checkpoint, here):
    with pytest.raises(CheckpointError, match="no tokenizer"):
        optin_cli.trim(image_checkpoint("vit"), here / "out", options=optin_cli.TrimOptions(keep_script=("latin",)))
