"""GGUF: write a decoder for llama.cpp with its tokenizer, and run it by llama-cpp-python.

Layers of the same widths are written for the model's own architecture, others for `deci`, whose layers differ.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from optin_cli.artifacts.export import Continuation
from optin_cli.checkpoints.decilm import head_dim_of
from optin_cli.checkpoints.fresh import run_fresh
from optin_cli.errors import CertificateError
from optin_cli.exporting.gguf_families import Family, Form, find_family
from optin_cli.exporting.gguf_generation import continuing
from optin_cli.exporting.gguf_tensors import Layer, Tensors, completed, layer_sizes, named, shifted, turned
from optin_cli.exporting.gguf_vocabulary import read_vocabulary
from optin_cli.exporting.registry import ExportError, Prove, Run, Signature, Target
from optin_cli.exporting.trace import LENGTH
from optin_cli.model.forward import call_model
from optin_cli.model.plan import Plan
from optin_cli.options.export import WEIGHT_TYPES

if TYPE_CHECKING:
    from optin_cli.checkpoints.checkpoint import Checkpoint

INPUT, OUTPUT = "input_ids", "logits"
LARGEST_F16 = 65504.0
"""Beyond this, float16 is infinite."""
CONTINUED = 32
"""Tokens that are generated from each prompt."""
PROMPTS = 3
"""How many of the texts are prompts, too."""
PROMPT_TOKENS = 12
"""Most tokens of a prompt."""
TEXTS = (
    "The history of the city begins with a small settlement on the river.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 22))  # 23",
    "It's 9:45 on 12/31/1999, and they'll have sold 1234567 of them at $3.50!",
    "  two spaces,\ttabs\t\tand\r\nlines\n\n \n end  ",
    "Grüße aus Köln, où l'été s'achève; до свидания, 東京タワー, 안녕하세요, مرحبا",
    "🙂 emoji 👩‍👩‍👧 and ½ ² symbols — “quoted” …",
    "CamelCase snake_case UPPER lower www.example.org/a?b=c&d=e {[()]} <tag> ###",
)
"""Texts that a tokenizer must split in the runtime as in transformers: words, code, numbers, spaces, scripts, signs."""
PROVE = """
import itertools, json, sys
sys.modules["optin_cli"] = None
import llama_cpp
path, request, result, threads = sys.argv[1:5]
texts, prompts, tokens = json.load(open(request))
most = max(map(len, prompts)) + tokens
model = llama_cpp.Llama(path, n_ctx=most, n_threads=int(threads), type_k=0, type_v=0, verbose=False)
split = [model.tokenize(text.encode(), add_bos=False, special=False) for text in texts]
found = [[*itertools.islice(model.generate(p, temp=0.0, repeat_penalty=1.0), tokens)] for p in prompts]
json.dump([split, found], open(result, "w"))
"""
"""Splits texts into tokens and continues prompts greedily."""


def convert(checkpoint: Checkpoint, path: Path, weight_type: str) -> Signature:
    """Write a checkpoint's weights, sizes and tokenizer; matrices in a type, everything else in float32.

    Raises:
        ExportError: llama.cpp cannot run such a model, or does not tokenize so.
        CheckpointError: there is no tokenizer.
    """
    import gguf

    config = checkpoint.blueprint.config
    family = find_family(checkpoint.blueprint.model_class, config)
    form, tensors, layers = _weights(checkpoint, family)
    size = tensors["token_embd.weight"].shape[0]
    vocabulary = read_vocabulary(checkpoint.input.tokenizer(), size, checkpoint.name)
    writer = gguf.GGUFWriter(path, form.architecture)
    writer.add_name(checkpoint.name)
    writer.add_file_type(int(gguf.LlamaFileType[FILE_TYPES[weight_type]]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _write_sizes(writer, config, layers)
    for key, of_config in family.keys.items():
        _add_number(writer, f"{form.architecture}.{key}", getattr(config, of_config))
    scaling = _rope(writer, config)
    vocabulary.write(writer)
    for name, tensor in {**scaling, **tensors}.items():
        _add_tensor(writer, name, tensor, weight_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    axes = {0: "batch", 1: LENGTH}
    return Signature((INPUT,), {OUTPUT: ("batch", LENGTH, size)}, {INPUT: axes})


FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
"""What the whole file is called by the type of its matrices."""


def _weights(checkpoint: Checkpoint, family: Family) -> tuple[Form, Tensors, list[Layer]]:
    """The architecture that holds a model, its weights by llama.cpp's names, and the sizes of its layers."""
    config, planned = checkpoint.blueprint.config, checkpoint.blueprint.plan
    number, head_dim = config.num_hidden_layers, head_dim_of(config)
    form: Form | None = family if planned is None else family.ragged
    if form is None:
        raise ExportError(
            f"Layers of {checkpoint.name} differ in width, and llama.cpp has no architecture for such a "
            f"{checkpoint.blueprint.model_class}.",
            hint="Search with --layout uniform, prune, and export that; or pass --to onnx.",
        )
    if planned is not None and (plan := Plan.model_validate(planned)) and (plan.pad or plan.merge):
        raise ExportError(
            f"{checkpoint.name} has {'heads with fewer dimensions' if plan.pad else 'tokens that merge'}, which "
            "llama.cpp cannot run.",
            hint="Score and search with --units heads,neurons, or pass --to onnx.",
        )
    tensors = named(checkpoint.model.state_dict(), form.architecture, number)
    layers = layer_sizes(tensors, number, head_dim)
    if planned is not None:
        tensors, layers = completed(tensors, layers, head_dim)
    return form, shifted(turned(tensors, head_dim, form.rotary), family.norm_offset), layers


def _write_sizes(writer: Any, config: Any, layers: Sequence[Layer]) -> None:
    """Add the sizes of a model: one number where all layers have the same, else one of each layer."""

    def of(counts: Sequence[int]) -> int | list[int]:
        return counts[0] if len(set(counts)) == 1 else list(counts)

    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(layers))
    writer.add_feed_forward_length(of([layer.neurons for layer in layers]))
    writer.add_head_count(of([layer.heads for layer in layers]))
    writer.add_head_count_kv(of([layer.groups for layer in layers]))
    writer.add_key_length(head_dim_of(config))
    writer.add_value_length(head_dim_of(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_number(writer: Any, key: str, value: float) -> None:
    if isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_float32(key, value)


def _rope(writer: Any, config: Any) -> Tensors:
    """Add how positions turn queries and keys; returns factors that frequencies are divided by, where there are any.

    Raises ExportError: by a rule that is not written.
    """
    from gguf import RopeScalingType
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters
    kind, base, head_dim = rope.get("rope_type", "default"), float(rope["rope_theta"]), head_dim_of(config)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(base)
    if kind == "default":
        return {}
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        return {}
    if kind != "llama3":
        raise ExportError(
            f"The config scales rotary positions by the rule {kind!r}; optin writes 'default', 'linear' and 'llama3' "
            "for llama.cpp.",
            hint="For this model pass --to onnx.",
        )
    plain = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    scaled, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return {"rope_freqs.weight": plain / scaled}


def _add_tensor(writer: Any, name: str, tensor: torch.Tensor, weight_type: str) -> None:
    """Add a weight: a matrix in the type, or in float16 where its rows are no whole blocks of that; others in float32.

    Raises ExportError: it has a value that float16 does not hold.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    kind = GGMLQuantizationType[weight_type.upper() if tensor.dim() > 1 else "F32"]
    if tensor.shape[-1] % GGML_QUANT_SIZES[kind][0]:
        kind = GGMLQuantizationType.F16
    array = tensor.contiguous().numpy()
    if kind == GGMLQuantizationType.F16 and abs(array).max() > LARGEST_F16:
        raise ExportError(
            f"The weight {name} has a value of {abs(array).max():.3g}, more than float16 holds.",
            hint="Pass --gguf-type f32.",
        )
    writer.add_tensor(name, quants.quantize(array, kind), raw_dtype=kind)


def open_file(path: str, threads: int) -> Run:
    """The model on the CPU, with keys and values cached in float32; opened again for a longer text than before."""
    import llama_cpp
    import numpy

    def opened(length: int) -> Any:
        return llama_cpp.Llama(
            path,
            n_ctx=length,
            n_batch=length,
            n_threads=threads,
            n_threads_batch=threads,
            type_k=0,
            type_v=0,
            logits_all=True,
            verbose=False,
        )

    held = [opened(64)]

    def run(inputs):  # type: ignore[no-untyped-def]
        rows = []
        for ids in inputs["input_ids"].tolist():
            if len(ids) > held[0].n_batch:
                held[0] = opened(len(ids))
            held[0].reset()
            held[0].eval(ids)
            rows.append(numpy.array(held[0].scores[: len(ids)]))
        return {"logits": numpy.stack(rows)}

    return run


def proving(checkpoint: Checkpoint) -> Prove:
    """What compares tokens of texts and greedy continuations with the checkpoint's, in a fresh process.

    It raises CertificateError: texts are split otherwise; or, if a file is to be exact, continued otherwise.
    """
    tokenizer = checkpoint.input.tokenizer()
    split = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    prompts = [ids[:PROMPT_TOKENS] for ids in split[:PROMPTS]]
    expected = [continued(checkpoint.model, prompt, CONTINUED) for prompt in prompts]
    total = CONTINUED * len(prompts)

    def prove(path: Path, exact: bool) -> Continuation:
        their_split, theirs = _run_texts(path, prompts)
        for text, mine, other in zip(TEXTS, split, their_split, strict=True):
            if mine != other:
                raise CertificateError(
                    f"llama.cpp splits {text!r} into other tokens than the tokenizer of {checkpoint.name}: {other} "
                    f"instead of {mine}. Nothing was written.",
                    hint="Its rules differ from what tokenizer.json says; please report the tokenizer.",
                )
        agreed = sum(_agreed(mine, other) for mine, other in zip(expected, theirs, strict=True))
        if exact and agreed < total:
            raise CertificateError(
                f"llama.cpp continues {total - agreed} of {total} tokens otherwise than {checkpoint.name}. "
                "Nothing was written."
            )
        return Continuation(texts=len(TEXTS), tokens=total, agreed=agreed)

    return prove


def _run_texts(path: Path, prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens of the texts and continuations of the prompts, by a file."""
    with tempfile.TemporaryDirectory() as scratch:
        request, result = Path(scratch) / "request.json", Path(scratch) / "result.json"
        request.write_text(json.dumps([TEXTS, prompts, CONTINUED]), encoding="utf-8")
        arguments = [str(path.resolve()), str(request), str(result), str(torch.get_num_threads())]
        run_fresh(PROVE, arguments, Path(scratch), "The exported file does not run (llama_cpp)")
        split, found = json.loads(result.read_text(encoding="utf-8"))
    return split, found


def continued(model: nn.Module, prompt: Sequence[int], tokens: int) -> list[int]:
    """The most likely next tokens, one after another, without a cache, which not every pruned model can fill."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(tokens):
            following = call_model(model, {INPUT: ids})[OUTPUT][:, -1:].argmax(dim=-1)
            ids = torch.cat([ids, following], dim=1)
    return [int(number) for number in ids[0, len(prompt) :]]


def _agreed(mine: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens are the same before the first that is not."""
    same = [a == b for a, b in zip(mine, theirs, strict=True)]
    return same.index(False) if False in same else len(same)


TARGET = Target(
    name="gguf",
    suffix=".gguf",
    extra="gguf",
    writes_with=("gguf",),
    runs_with=("llama_cpp",),
    convert=convert,
    open=open_file,
    types=WEIGHT_TYPES,
    takes=(INPUT,),
    proving=proving,
    continuing=continuing,
    even=32,
)
