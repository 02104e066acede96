"""Folders of sentence-transformers: what their files say, what is refused, and what goes along with a pruned model."""

import json

import pytest
import torch
from helpers.models import build, save_checkpoint, tiny_tokenizer
from helpers.running import done
from helpers.sentences import WIDTH, sentence_folder, write_json
from safetensors.torch import load_file, save_file

import optin_cli
from optin_cli.checkpoints.checkpoint import load
from optin_cli.checkpoints.folders import folder_source
from optin_cli.checkpoints.save import carried_files
from optin_cli.checkpoints.sentences import DOCUMENT, QUERY, is_installed, read_sentences
from optin_cli.data.text.samples import Samples
from optin_cli.errors import CheckpointError
from optin_cli.evaluation.predict import Trial, encoded
from optin_cli.evaluation.predictors.similarity import embed
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.scoring import ScoreOptions
from optin_cli.searching.limits import Limits

TEXTS = ["a b c d e f", "good film", "h", "k l m n o p q r s t a b c"]


def embedded(checkpoint, texts=TEXTS, prompt=(), **options):
    samples = Samples("d", "all", [(text,) for text in texts], None, None, "0" * 64, len(texts))
    trial = Trial(checkpoint, samples, None, EvalOptions(batch_size=2, **options))
    return embed(checkpoint, encoded(trial, labelled=False, prompt=prompt))


def pruned(checkpoint, folder, keep=0.6, **limits):
    scores = optin_cli.score(checkpoint, options=ScoreOptions(criterion="magnitude"))
    return optin_cli.prune(checkpoint, optin_cli.search(scores, Limits(keep_macs=keep, **limits)), folder)


def hidden_states(checkpoint, text):
    return checkpoint.model(**tiny_tokenizer()([text], return_tensors="pt")).last_hidden_state[0]


@pytest.mark.parametrize("at", ["", "0_Transformer"])
def test_an_encoder_embeds_as_its_modules_say(tmp_path, at):
    checkpoint = load(
        sentence_folder(tmp_path / "st", ("cls", "max"), after=("Dense", "LayerNorm", "Normalize"), at=at)
    )
    dense = load_file(tmp_path / "st" / "2_Dense" / "model.safetensors")
    norm = torch.load(tmp_path / "st" / "3_LayerNorm" / "pytorch_model.bin")
    for text, found in zip(TEXTS, embedded(checkpoint), strict=True):
        hidden = hidden_states(checkpoint, text)
        x = torch.cat([hidden[0], hidden.max(dim=0).values])
        x = torch.tanh(dense["linear.weight"] @ x + dense["linear.bias"])
        x = torch.nn.functional.layer_norm(x, (6,), norm["norm.weight"], norm["norm.bias"])
        torch.testing.assert_close(found, x / x.norm())


def test_a_model_with_another_head_is_loaded_without_it(tmp_path):
    """Published encoders often name the class that they were pretrained with."""
    folder = sentence_folder(tmp_path / "st", ("mean",), family="mpnet")
    expected = embedded(load(folder))
    state = {f"mpnet.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file({**state, "lm_head.bias": torch.ones(99)}, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"architectures": ["MPNetForMaskedLM"]})
    checkpoint = load(folder)
    assert (checkpoint.blueprint.model_class, checkpoint.source.opened_as) == ("MPNetModel", None)
    assert checkpoint.left_out == ("lm_head.bias",) and "which MPNetModel has no place for" in checkpoint.notes[0]
    torch.testing.assert_close(embedded(checkpoint), expected)


def test_as_another_class_an_encoder_is_a_model_like_any_other(tmp_path):
    folder = sentence_folder(tmp_path / "st", family="bert")
    whole = build("bert", "masked")
    whole.save_pretrained(folder)
    assert load(folder, as_class="AutoModel").source == load(folder).source
    assert load(folder).blueprint.sentences is not None
    masked = load(folder, as_class="AutoModelForMaskedLM")
    assert (masked.blueprint.sentences, masked.source.opened_as) == (None, "AutoModelForMaskedLM")
    assert masked.blueprint.purpose == "fill-mask" and not masked.left_out
    pruned(masked, tmp_path / "small")
    assert not (tmp_path / "small" / "modules.json").exists()
    assert load(tmp_path / "small").blueprint.model_class == "BertForMaskedLM"


@pytest.mark.parametrize("stated", ["mean", ["mean"], None])
def test_the_pooling_of_newer_versions_has_a_name(tmp_path, stated):
    folder = sentence_folder(tmp_path / "st")
    write_json(folder / "1_Pooling" / "config.json", {"embedding_dimension": WIDTH, "pooling_mode": stated})
    assert load(folder).structure.embedding.pooling == ("mean",)


@pytest.mark.parametrize("counts", [True, False])
def test_prompts_stand_before_texts_and_count_if_the_pooling_says_so(tmp_path, counts):
    folder = sentence_folder(tmp_path / "st", ("mean",), prompts={"query": "good ", "passage": "bad film ", "none": ""})
    settings = json.loads((folder / "1_Pooling" / "config.json").read_text())
    write_json(folder / "1_Pooling" / "config.json", settings | {"include_prompt": counts})
    checkpoint = load(folder)
    for names, prompt, tokens in ((QUERY, "good ", 2), (DOCUMENT, "bad film ", 3), ((), "", 0)):
        found = embedded(checkpoint, ["a b c"], names)[0]
        hidden = hidden_states(checkpoint, f"{prompt}a b c")[0 if counts else tokens :].mean(dim=0)
        torch.testing.assert_close(found, hidden / hidden.norm())


def test_a_default_prompt_stands_before_texts_of_no_part(tmp_path):
    folder = sentence_folder(tmp_path / "st", prompts={"query": "good ", "plain": "bad "})
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": {"query": "good ", "plain": "bad "}, "default_prompt_name": "plain"},
    )
    sentences = read_sentences(folder)
    assert [sentences.prompt(names) for names in ((), QUERY, DOCUMENT)] == ["bad ", "good ", ""]


def test_texts_are_cut_where_the_folder_says(tmp_path):
    checkpoint = load(sentence_folder(tmp_path / "st", settings={"max_seq_length": 6, "do_lower_case": True}))
    assert checkpoint.input.most == 6
    found = embedded(checkpoint, ["A B C D e f g h", "a b c d x", "a b c d"])
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[2])
    long = load(sentence_folder(tmp_path / "long", settings={"max_seq_length": 999}))
    assert long.input.most == 64


@pytest.mark.parametrize("at", ["", "0_Transformer"])
def test_a_pruned_folder_has_the_files_of_the_whole_one(tmp_path, at):
    folder = sentence_folder(tmp_path / "st", after=("Dense", "Normalize"), at=at, prompts={"query": "good "})
    (folder / "onnx").mkdir()
    for name in ("onnx/model.onnx", "tf_model.h5", ".gitattributes"):
        (folder / name).write_text("x")
    checkpoint = load(folder)
    manifest = pruned(checkpoint, tmp_path / "small")
    small = load(tmp_path / "small")
    there = {str(path.relative_to(tmp_path / "small")) for path in (tmp_path / "small").rglob("*") if path.is_file()}
    assert there >= {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors", "notes.txt"}
    assert there >= {"sentence_bert_config.json", "config_sentence_transformers.json", "config.json", "README.md"}
    assert not there & {"onnx/model.onnx", "tf_model.h5", ".gitattributes", "0_Transformer/config.json"}
    assert small.blueprint.sentences.prompts == {"query": "good "} and small.input.most == 32
    card = (tmp_path / "small" / "README.md").read_text()
    assert 'SentenceTransformer("path/to/this/folder", trust_remote_code=True)' in card
    assert "library_name: sentence-transformers" in card
    assert folder_source(tmp_path / "small") == small.source and folder_source(folder) == checkpoint.source
    if not is_installed():
        assert "SentenceTransformer(folder) was not tried" in manifest.certificate.note
        assert manifest.certificate.note in card


def test_other_folders_carry_no_more_than_before(tmp_path):
    folder = save_checkpoint(tmp_path / "plain", head="base")
    (folder / "notes.txt").write_text("x")
    assert {str(place) for place in carried_files(load(folder))} == {"tokenizer.json", "tokenizer_config.json"}


def test_eval_pools_as_the_folder_says(tmp_path, here):
    from helpers.running import write_rows
    from helpers.similarity import ROWS
    from scipy import stats

    folder = sentence_folder(tmp_path / "st", ("lasttoken",))
    checkpoint = load(folder)
    data = write_rows(here / "stsb.jsonl", ROWS)
    run = done("eval", folder, "--task", "stsb-cosine", "--data", data, "--latency-runs", 0, "--json")
    first, second = (
        torch.stack([hidden_states(checkpoint, row[side])[-1] for row in ROWS]) for side in ("sentence1", "sentence2")
    )
    cosines = torch.cosine_similarity(first, second)
    expected = stats.pearsonr(cosines.tolist(), [row["label"] for row in ROWS]).statistic
    assert json.loads(run.out)["metrics"]["pearson"] == pytest.approx(expected, abs=1e-5)


def test_an_exported_encoder_embeds_like_the_folder(tmp_path):
    checkpoint = load(sentence_folder(tmp_path / "st", ("mean",), after=("Dense",), num_hidden_layers=1))
    optin_cli.export(checkpoint, "onnx", tmp_path / "out")
    from optin_cli.exporting.load import load_evaluated

    exported = load_evaluated(tmp_path / "out" / "model.onnx")
    torch.testing.assert_close(embedded(exported), embedded(checkpoint), rtol=1e-4, atol=1e-5)


BROKEN = {
    "another package": ("modules.json", [{"path": "", "type": "custom_st.Transformer"}], "code that is not part of"),
    "outside": ("modules.json", [{"path": "../x", "type": "sentence_transformers.models.Transformer"}], "outside"),
    "no list": ("modules.json", {"path": ""}, "does not list modules"),
    "no type": ("modules.json", [{"path": ""}], "a module without type or path"),
    "no transformer": (
        "modules.json",
        [{"path": "", "type": "sentence_transformers.models.StaticEmbedding"}],
        "begins with the module StaticEmbedding; expected Transformer",
    ),
    "no pooling": ("modules.json", [{"path": "", "type": "sentence_transformers.models.Transformer"}], "expected one"),
    "a pooling": ("1_Pooling/config.json", {"pooling_mode": "median"}, "the pooling 'median'; expected one of cls"),
    "an activation": (
        "2_Dense/config.json",
        {"in_features": 32, "out_features": 6, "activation_function": "os.x"},
        "os.x",
    ),
    "sizes": ("2_Dense/config.json", {"in_features": 31, "out_features": 6}, "do not fit a Dense"),
    "tokens": ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "expected 'sentence_embedding'"),
    "no settings": ("sentence_bert_config.json", [32], "expected settings by name"),
    "no sizes": ("2_Dense/config.json", {}, "expected whole numbers in_features and out_features"),
    "JSON": ("2_Dense/config.json", None, "is not valid JSON"),
    "a sparse encoder": ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "holds a SparseEncoder"),
}


@pytest.mark.parametrize(("name", "content", "message"), BROKEN.values(), ids=BROKEN)
def test_unsound_folders_are_refused(tmp_path, name, content, message):
    folder = sentence_folder(tmp_path / "st", after=("Dense",))
    (folder / name).write_text("{" if content is None else json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_an_unknown_module_is_named(tmp_path):
    folder = sentence_folder(tmp_path / "st", after=("LSTM",))
    with pytest.raises(CheckpointError, match="names the module LSTM; expected Pooling or Dense") as error:
        load(folder)
    assert "without modules.json" in error.value.hint


def test_a_reranker_keeps_its_head(tmp_path):
    folder = save_checkpoint(tmp_path / "reranker", head="regression")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"sentence_transformers": {"version": "5.0.0"}})
    checkpoint = load(folder)
    assert checkpoint.blueprint.sentences.loader == "CrossEncoder"
    assert checkpoint.blueprint.purpose == "regression"
    pruned(checkpoint, tmp_path / "small")
    assert json.loads((tmp_path / "small" / "config.json").read_text())["sentence_transformers"] == {"version": "5.0.0"}
    assert (
        'CrossEncoder("path/to/this/folder", trust_remote_code=True)' in (tmp_path / "small" / "README.md").read_text()
    )


class TestWithTheLibrary:
    """What sentence-transformers themselves make of pruned folders."""

    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("sentence_transformers", exc_type=ImportError)

    @pytest.mark.parametrize(
        "pooling", [("cls",), ("max", "mean"), ("weightedmean",), ("mean_sqrt_len_tokens", "lasttoken")]
    )
    def test_a_pruned_folder_gives_the_same_embeddings(self, tmp_path, pooling):
        folder = sentence_folder(tmp_path / "st", pooling, after=("Dense", "Normalize"), at="0_Transformer")
        certificate = pruned(load(folder), tmp_path / "small").certificate
        assert certificate.loader.startswith("SentenceTransformer(trust_remote_code=True)")
        assert certificate.outputs == ["last_hidden_state", "sentence_embedding"]
        assert certificate.note is None and certificate.reloaded <= certificate.tolerance
        from sentence_transformers import SentenceTransformer

        theirs = SentenceTransformer(str(tmp_path / "small"), device="cpu", trust_remote_code=True)
        found = torch.from_numpy(theirs.encode(TEXTS))
        torch.testing.assert_close(found, embedded(load(tmp_path / "small")), rtol=1e-4, atol=1e-5)

    def test_a_pruned_reranker_gives_the_same_scores(self, tmp_path):
        folder = tmp_path / "reranker"
        model = build("bert", "regression")
        model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        certificate = pruned(load(folder), tmp_path / "small").certificate
        assert certificate.loader.startswith("CrossEncoder(trust_remote_code=True)")
        from sentence_transformers import CrossEncoder

        theirs = CrossEncoder(str(tmp_path / "small"), device="cpu", trust_remote_code=True)
        small = load(tmp_path / "small")
        expected = small.model(**tiny_tokenizer()(["a b"], ["good"], return_tensors="pt")).logits
        assert theirs.predict([("a b", "good")]) == pytest.approx(expected.item(), abs=1e-5)
