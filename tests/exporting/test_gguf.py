"""GGUF files: what llama.cpp computes of them, what is in them, and models that they cannot hold."""

import copy
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from helpers.masks import make_mask
from helpers.models import build, save_checkpoint
from helpers.running import call, done
from helpers.tokenizers import make_byte_tokenizer, make_piece_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

import optin_cli
from optin_cli.artifacts.base import parse
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.export import Export
from optin_cli.checkpoints.checkpoint import load
from optin_cli.cli.export import uneven
from optin_cli.errors import CertificateError
from optin_cli.exporting.gguf import continued
from optin_cli.exporting.gguf_generation import _Rows
from optin_cli.exporting.registry import ExportError, target_named
from optin_cli.model.forward import call_model
from optin_cli.options.export import ExportOptions

pytest.importorskip("gguf")
needs_llama_cpp = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="needs llama_cpp")
VOCABULARY = 340
TURNS = {"rope_theta": 500.0, "rope_type": "default"}
LLAMA3 = TURNS | {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_position_embeddings",
    "head_dim",
)
IDS = torch.randint(3, VOCABULARY, (2, 21), generator=torch.Generator().manual_seed(0))


def save(folder, family="llama", *, tokenizer=None, **overrides):
    """Write a decoder with a tokenizer of llama.cpp's kinds; returns the folder."""
    build(family, "next", **({"vocab_size": VOCABULARY} | overrides)).save_pretrained(folder)
    (tokenizer or make_byte_tokenizer()).save_pretrained(folder)
    return folder


def write(checkpoint, folder, weight_type="f32"):
    """The file of a checkpoint, not certified."""
    path = folder / "model.gguf"
    target_named("gguf").convert(checkpoint, path, weight_type)
    return path


def read(path):
    """Metadata and tensors of a file."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}, {t.name: t for t in reader.tensors}


def ragged(folder, family="llama", **overrides):
    """A pruned checkpoint whose layers differ, two of them without neurons."""
    checkpoint = load(save(folder / "whole", family, **overrides))
    kept = {"head": ([0, 2], [1], [0, 1, 3]), "neuron": ([], [*range(7)], [])}
    mask = {f"decoder.{layer}.{kind}": units for kind, each in kept.items() for layer, units in enumerate(each)}
    optin_cli.prune(checkpoint, make_mask(checkpoint, mask), folder / "ragged")
    return load(folder / "ragged")


def emptied(checkpoint, parts):
    """The checkpoint with modules whose weights are gone, and the model in which they are zeros instead."""
    zeros = copy.deepcopy(checkpoint.model)
    empty = copy.deepcopy(checkpoint.model)
    for model in (zeros, empty):
        for part in parts:
            for parameter in model.get_submodule(part).parameters():
                parameter.data = torch.zeros_like(parameter) if model is zeros else torch.empty(0)
    blueprint = replace(checkpoint.blueprint, plan={"root": "model"})
    return replace(checkpoint, model=empty, blueprint=blueprint), zeros


def largest_difference(path, model):
    """Between the logits of a file in llama.cpp and those of a model."""
    run = target_named("gguf").open(str(path), 1)
    with torch.no_grad():
        expected = call_model(model, {"input_ids": IDS})["logits"]
    return float((torch.from_numpy(run({"input_ids": IDS.numpy()})["logits"]) - expected).abs().max())


@needs_llama_cpp
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 6}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"rope_parameters": TURNS | {"rope_type": "linear", "factor": 4.0}}),
        ("qwen2", {"rope_parameters": TURNS}),
    ],
    ids=["llama", "biases", "llama3", "linear", "qwen2"],
)
def test_llama_cpp_computes_what_the_model_does(tmp_path, family, overrides):
    checkpoint = load(save(tmp_path / "m", family, **overrides))
    path = write(checkpoint, tmp_path)
    metadata, tensors = read(path)
    assert metadata["general.architecture"] == family
    assert metadata[f"{family}.attention.head_count_kv"] == 4
    assert {tensor.tensor_type.name for tensor in tensors.values()} == {"F32"}
    assert largest_difference(path, checkpoint.model) < 1e-4


@needs_llama_cpp
@pytest.mark.parametrize(
    ("kind", "architecture", "overrides"),
    [("mistral", "llama", {"sliding_window": None}), ("qwen3", "qwen3", {"attention_bias": False})],
)
def test_decoders_of_other_classes(tmp_path, kind, architecture, overrides):
    checkpoint = load(save(tmp_path / "m"))
    sizes = {key: getattr(checkpoint.blueprint.config, key) for key in SIZES}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **overrides)).eval()
    for parameter in model.parameters():
        parameter.data += torch.randn(parameter.shape) * 0.2
    blueprint = replace(checkpoint.blueprint, config=model.config, model_class=type(model).__name__)
    path = write(replace(checkpoint, model=model, blueprint=blueprint), tmp_path)
    assert read(path)[0]["general.architecture"] == architecture
    assert largest_difference(path, model) < 1e-4


@needs_llama_cpp
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_layers_that_differ_are_written_as_deci(tmp_path, family):
    checkpoint = ragged(tmp_path, family)
    path = write(checkpoint, tmp_path)
    metadata, _ = read(path)
    assert metadata["general.architecture"] == "deci"
    assert metadata["deci.attention.head_count"] == [4, 2, 6]
    assert metadata["deci.attention.head_count_kv"] == [2, 1, 3]
    assert metadata["deci.feed_forward_length"] == [32, 7, 32]  # zeros where attention stands alone
    assert largest_difference(path, checkpoint.model) < 1e-4


@needs_llama_cpp
def test_the_proof_of_exact_weights(tmp_path):
    record = optin_cli.export(save(tmp_path / "m"), "gguf", tmp_path / "o", options=ExportOptions(weight_type="f32"))
    proof = record.certificate
    assert proof.difference <= proof.tolerance < 1e-3
    assert (proof.continuation.texts, proof.continuation.tokens, proof.continuation.agreed) == (7, 96, 96)
    assert [probe.seq_len for probe in proof.probes] == [17, 8, 40, 24]
    assert record.unquantized is None


@needs_llama_cpp
@pytest.mark.parametrize(
    ("parts", "heads", "neurons"),
    [
        (["1.self_attn"], [8, 0, 8], [40, 40, 40]),
        (["1.mlp"], [8, 8, 8], [40, 32, 40]),
        (["1.self_attn", "1.mlp"], [8, 0, 8], [40, 0, 40]),
        (["0.self_attn", "0.mlp"], [1, 8, 8], [32, 40, 40]),
        (["2.self_attn", "2.mlp"], [8, 8, 0], [40, 40, 32]),
    ],
    ids=["attention", "ffn", "layer", "first", "last"],
)
def test_layers_without_parts(tmp_path, parts, heads, neurons):
    checkpoint, zeros = emptied(load(save(tmp_path / "m")), [f"model.layers.{part}" for part in parts])
    path = write(checkpoint, tmp_path)
    metadata, _ = read(path)
    for key, expected in (("attention.head_count", heads), ("feed_forward_length", neurons)):
        assert metadata[f"deci.{key}"] == (expected[0] if len(set(expected)) == 1 else expected)
    assert largest_difference(path, zeros) < 1e-4


@needs_llama_cpp
@pytest.mark.parametrize(
    ("tokenizer", "weight_type", "most"), [(make_byte_tokenizer, "f16", 0.1), (make_piece_tokenizer, "q8_0", 2.0)]
)
def test_less_exact_weights_are_measured(tmp_path, tokenizer, weight_type, most):
    folder = save(tmp_path / "m", tokenizer=tokenizer())
    run = done("export", folder, "--to", "gguf", "--gguf-type", weight_type, "-o", tmp_path / "o")
    path = tmp_path / "o" / f"model.{weight_type}.gguf"
    assert run.out == f"{path}\n"
    assert f"with weights in {weight_type} they differ by" in run.err
    assert "tokens of 7 texts are the same" in run.err
    record = parse(Export, path.with_name(f"{path.name}.optin.json").read_bytes(), "record")
    assert record.options == {"gguf_type": weight_type}
    assert record.unquantized.difference <= record.unquantized.tolerance < record.certificate.difference < most
    assert record.certificate.tolerance is None
    _, tensors = read(path)
    stored = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert stored["blk.0.attn_norm.weight"] == "F32"
    assert stored["blk.0.attn_q.weight"] == weight_type.upper()
    assert stored["blk.0.ffn_down.weight"] == "F16"  # rows of 40 are no blocks of 32
    assert "the FFNs of 3 of 3 blocks have widths that are no multiples of 32" in run.err


@pytest.mark.parametrize(("target", "width", "told"), [("gguf", 40, True), ("gguf", 64, False), ("onnx", 40, False)])
def test_widths_that_the_runtime_multiplies_slowly_are_told(tmp_path, target, width, told):
    checkpoint = load(save(tmp_path / "m", intermediate_size=width))
    assert bool(uneven(checkpoint, target_named(target))) == told


@needs_llama_cpp
def test_a_file_is_evaluated_as_its_model_is(tmp_path, here):
    folder = save(tmp_path / "m")
    texts = here / "texts.txt"
    texts.write_text("\n\n".join(f"the history of the city {n} begins with a small river" for n in range(40)))
    done("export", folder, "--to", "gguf", "--gguf-type", "f32", "-o", tmp_path / "o")
    data = ("--task", "wikitext2", "--data", texts, "--latency-runs", "0", "--json")
    run = done("eval", tmp_path / "o" / "model.f32.gguf", *data, "--against", folder)
    result = parse(Evaluation, run.out.encode(), "stdout")
    assert result.against.kl < 1e-9
    assert result.against.agreement == 1


@needs_llama_cpp
def test_rows_of_a_batch_continue_as_the_model_does(tmp_path):
    checkpoint = ragged(tmp_path)
    rows = _Rows(str(write(checkpoint, tmp_path)), 2, IDS.shape[1] + 4, 1)
    for _ in range(2):  # the second time, the cache is emptied first
        steps = [rows.begin(IDS.tolist())]
        for _ in range(3):
            steps.append(rows.add(steps[-1]))
        assert [list(row) for row in zip(*steps, strict=True)] == [
            continued(checkpoint.model, prompt, 4) for prompt in IDS.tolist()
        ]


@needs_llama_cpp
def test_generation_of_files_is_timed_in_their_runtime(tmp_path, here):
    original, cut = load(save(tmp_path / "m")), ragged(tmp_path)
    for name, checkpoint in (("whole", original), ("cut", cut)):
        optin_cli.export(checkpoint, "gguf", here / name, options=ExportOptions(weight_type="f32"))
    sizes = ("--decode-batch", "1,3", "--decode-runs", "2", "--prompt-length", "7", "--new-tokens", "3")
    asked = ("--latency-runs", "0", *sizes, "--against", here / "whole/model.f32.gguf")
    run = done("eval", here / "cut/model.f32.gguf", *asked, "--json")
    result = parse(Evaluation, run.out.encode(), "stdout")
    mine, theirs = result.generation, result.against.generation
    assert mine.runtime == theirs.runtime == result.against.runtime and mine.runtime.startswith("llama_cpp")
    assert [*mine.speeds] == [*theirs.speeds] == [1, 3] and mine.runs == 2
    width = original.model.config.head_dim
    for found, groups in ((mine, 2 + 1 + 3), (theirs, 3 * 4)):
        assert (found.cache_dtype, found.cache_bytes_per_token) == ("float16", groups * 2 * width * 2)
    assert "runtime" in run.err and "decode tokens/s, batch 3" in run.err
    run = done("eval", here / "cut/model.f32.gguf", "--latency-runs", "0", *sizes, "--against", tmp_path / "ragged")
    assert "torch" in run.err and "llama_context" not in run.err
    assert "KV-cache bytes/token, float16 and float32" in run.err


@needs_llama_cpp
def test_a_context_that_llama_cpp_refuses_is_an_error(tmp_path, here):
    optin_cli.export(load(save(tmp_path / "m")), "gguf", here / "o")
    run = call("eval", here / "o/model.f16.gguf", "--latency-runs", "0", "--decode-runs", "1", "--decode-batch", "300")
    assert run.code == 1 and "error: llama.cpp does not generate 300 x 64 tokens of model.f16.gguf at once." in run.err


@needs_llama_cpp
def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("optin_cli.exporting.gguf.turned", lambda tensors, *_: dict(tensors))
    with pytest.raises(CertificateError, match="in llama_cpp against the model"):
        optin_cli.export(save(tmp_path / "m"), "gguf", tmp_path / "o")
    assert not (tmp_path / "o").exists()


@needs_llama_cpp
def test_a_file_that_splits_texts_otherwise_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("optin_cli.exporting.gguf_vocabulary._split_of", lambda *_: "smollm")
    with pytest.raises(CertificateError, match=r"llama.cpp splits .*1999.* into other tokens"):
        optin_cli.export(save(tmp_path / "m"), "gguf", tmp_path / "o")


def test_what_is_in_a_file(tmp_path):
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer = make_byte_tokenizer(chat_template=template)
    tokenizer.add_tokens(["<own>"])
    checkpoint = load(save(tmp_path / "m", tokenizer=tokenizer))
    metadata, tensors = read(write(checkpoint, tmp_path, "f16"))
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert metadata["tokenizer.chat_template"] == template
    assert (metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]) == (0, 1)
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == VOCABULARY == metadata["llama.vocab_size"]
    own = tokens.index("<own>")
    assert (kinds[0], kinds[own], kinds[own + 1]) == (3, 4, 5)  # control, added by the user, unused
    assert tensors["output.weight"].tensor_type.name == "F16"


def test_heads_are_stored_in_the_order_in_which_llama_cpp_turns_their_dimensions(tmp_path):
    checkpoint = load(save(tmp_path / "m"))
    _, tensors = read(write(checkpoint, tmp_path))
    attention = checkpoint.model.model.layers[1].self_attn
    queries, values = (torch.tensor(tensors[f"blk.1.attn_{part}.weight"].data) for part in ("q", "v"))
    assert torch.equal(values, attention.v_proj.weight)
    for head in range(8):
        rows = queries[4 * head : 4 * head + 4]
        assert torch.equal(rows, attention.q_proj.weight[[4 * head, 4 * head + 2, 4 * head + 1, 4 * head + 3]])


def test_a_tokenizer_from_sentencepiece(tmp_path):
    checkpoint = load(save(tmp_path / "m", tokenizer=make_piece_tokenizer()))
    metadata, _ = read(write(checkpoint, tmp_path))
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.add_space_prefix"] is True
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    kinds = metadata["tokenizer.ggml.token_type"]
    assert kinds[:4] == [2, 3, 3, 6]  # unknown, two of control, bytes
    scores = metadata["tokenizer.ggml.scores"]
    assert max(scores) == 0.0 and len(set(scores)) > 10


UNSPLIT = make_byte_tokenizer("[aeiou]")


@pytest.mark.parametrize(
    ("family", "overrides", "tokenizer", "words"),
    [
        ("llama", {"hidden_act": "gelu"}, None, "its config has hidden_act = 'gelu'"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8}, None, "its config has use_sliding_window = True"),
        (
            "llama",
            {"rope_parameters": TURNS | {"rope_type": "dynamic", "factor": 2.0}},
            None,
            "scales rotary positions by the rule 'dynamic'",
        ),
        ("llama", {}, UNSPLIT, r"splits text by '\[aeiou\]', and optin knows no pre-tokenizer of llama.cpp"),
        ("llama", {"vocab_size": 200}, None, "gives ids up to .*, but its embeddings have 200 rows"),
    ],
    ids=["activation", "window", "positions", "split", "vocabulary"],
)
def test_models_that_llama_cpp_runs_otherwise_are_refused(tmp_path, family, overrides, tokenizer, words):
    checkpoint = load(save(tmp_path / "m", family, tokenizer=tokenizer, **overrides))
    with pytest.raises(ExportError, match=words):
        write(checkpoint, tmp_path)


def test_families_and_tokenizers_that_llama_cpp_lacks_are_refused(tmp_path):
    with pytest.raises(ExportError, match="cannot hold a BertForSequenceClassification"):
        write(load(save_checkpoint(tmp_path / "bert")), tmp_path)
    with pytest.raises(ExportError, match="is a WordPiece"):
        write(load(save_checkpoint(tmp_path / "m", "llama", "next")), tmp_path)


def test_weights_beyond_float16_are_refused(tmp_path):
    checkpoint = load(save(tmp_path / "m"))
    checkpoint.model.lm_head.weight[0, 0] = 1e6
    with pytest.raises(ExportError, match=r"output.weight has a value of 1e\+06"):
        write(checkpoint, tmp_path, "f16")
    write(checkpoint, tmp_path, "f32")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "onnx", "--gguf-type", "f16"], "The target onnx has no --gguf-type"),
        (["--to", "gguf", "--int8"], "Pass --gguf-type q8_0"),
        (["--to", "gguf", "--opset", "18"], "The target gguf has no opsets"),
        (["--to", "gguf", "--gguf-type", "q9"], "Unknown"),
        (["--to", "guff"], "gguf"),
    ],
)
def test_wrong_options(here, arguments, words):
    run = call("export", "nothing", *arguments)
    assert run.code == 2
    assert words in run.err
