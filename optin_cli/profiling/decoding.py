"""Speed of greedy generation with a cache of keys and values, and the cache's size. Models are interleaved."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from optin_cli.artifacts.generation import Generation, Quartiles, Speed
from optin_cli.options.generation import GenerationOptions
from optin_cli.profiling.devices import describe_device
from optin_cli.profiling.timing import evaluating, measure_latency

Inputs = Mapping[str, torch.Tensor]


@dataclass
class Marks:
    """A streamer of transformers that keeps when tokens arrive: the prompt, then what each pass of the model adds.

    counts: tokens of each arrival, over all rows. Tokens arrive on the CPU, so that the device's work is done.
    """

    seconds: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def put(self, tokens: torch.Tensor) -> None:
        """Take the tokens that arrive."""
        self.seconds.append(time.perf_counter())
        self.counts.append(tokens.numel())

    def end(self) -> None:
        """Nothing more arrives."""


def generate(model: Any, inputs: Inputs, marks: Marks, count: int, **how: Any) -> Any:
    """Continue prompts (rows, tokens) greedily by `count` tokens each, none of them an end token.

    how: more arguments of the model's `generate`, whose output is returned.
    """
    if model.generation_config.pad_token_id is None:
        how = {"pad_token_id": 0, **how}  # never used, since no row ends early
    return model.generate(
        **inputs,
        do_sample=False,
        use_cache=True,
        max_new_tokens=count,
        min_new_tokens=count,
        return_dict_in_generate=True,
        streamer=marks,
        **how,
    )


def cache_of(output: Any) -> Any:
    """The cache in the output of a generation, under its name in this version of transformers."""
    return output.cache if hasattr(output, "cache") else output.past_key_values


def cached_tensors(output: Any) -> list[torch.Tensor]:
    """Keys and values of every layer that has some, (rows, heads, tokens, width), behind a generation."""
    layers = cache_of(output).layers
    tensors = (tensor for layer in layers for tensor in (layer.keys, layer.values))
    return [tensor for tensor in tensors if tensor is not None]


@dataclass
class _Timed:
    """What was measured of one model at one batch size: seconds of prompts and of later tokens, and the last output."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    output: Any = None

    def call(self, model: Any, inputs: Inputs, new_tokens: int) -> Callable[[], None]:
        """What generates once and adds its times."""

        def run() -> None:
            marks = Marks()
            self.output = generate(model, inputs, marks, new_tokens)
            begin, first, *_, last = marks.seconds
            self.prefill.append(first - begin)
            self.decode.append(last - first)

        return run


def measure_generation(
    models: Sequence[Any], inputs: Mapping[int, Sequence[Inputs]], options: GenerationOptions, runs: int
) -> list[Generation]:
    """Time greedy generation of exactly `options.new_tokens` tokens, an end token notwithstanding.

    Args:
        models: of transformers, with a language-modelling head.
        inputs: by batch size, the prompt of each model, of the same shape.
    """
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        timed = {batch: _timed(models, mine, options, runs) for batch, mine in inputs.items()}
    first = next(iter(inputs))
    return [
        _recorded([(batch, times[place]) for batch, times in timed.items()], inputs[first][place], options, runs)
        for place in range(len(models))
    ]


def _timed(models: Sequence[Any], inputs: Sequence[Inputs], options: GenerationOptions, runs: int) -> list[_Timed]:
    found = [_Timed() for _ in models]
    calls = [
        timed.call(model, mine, options.new_tokens) for timed, model, mine in zip(found, models, inputs, strict=True)
    ]
    measure_latency(calls, runs=runs, warmup=options.decode_warmup)
    return found


def _recorded(timed: list[tuple[int, _Timed]], inputs: Inputs, options: GenerationOptions, runs: int) -> Generation:
    ids = inputs["input_ids"]
    prompt, new = ids.shape[1], options.new_tokens
    batch, last = timed[-1][0], timed[-1][1].output
    tensors = cached_tensors(last)
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})

    def rate(tokens: int, seconds: list[float]) -> Quartiles:
        return Quartiles.of([tokens / one for one in seconds[options.decode_warmup :]])

    return Generation(
        prompt_tokens=prompt,
        new_tokens=new,
        runs=runs,
        warmup=options.decode_warmup,
        device=describe_device(ids.device),
        threads=torch.get_num_threads(),
        cache_dtype=", ".join(types) or "none",
        cache_bytes_per_token=held / (batch * (prompt + new - 1)),  # the last token is not read any more
        speeds={
            rows: Speed(
                prefill_per_second=rate(rows * prompt, one.prefill),
                decode_per_second=rate(rows * (new - 1), one.decode),
            )
            for rows, one in timed
        },
    )
