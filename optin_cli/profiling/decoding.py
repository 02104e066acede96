"""Speed of greedy generation with a cache of keys and values, and the cache's size. Models are interleaved."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from optin_cli.artifacts.generation import Generation, Quartiles, Speed
from optin_cli.checkpoints.batching import Inputs
from optin_cli.checkpoints.continuing import Continue, Continued
from optin_cli.options.generation import GenerationOptions
from optin_cli.profiling.devices import describe_device
from optin_cli.profiling.timing import evaluating, measure_latency


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


def generate(model: Any, inputs: Mapping[str, torch.Tensor], marks: Marks, count: int, **how: Any) -> Any:
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


def continuing(model: Any) -> Continue:
    """What continues prompts by a model of transformers with a language-modelling head."""

    def run(inputs: Inputs, new_tokens: int) -> Continued:
        marks = Marks()
        with evaluating(model):
            output = generate(model, inputs, marks, new_tokens)
        begin, first, *_, last = marks.seconds
        tensors = cached_tensors(output)
        held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})
        rows, prompt = inputs["input_ids"].shape
        read = rows * (prompt + new_tokens - 1)  # the last token is not read any more
        return Continued(first - begin, last - first, held / read, ", ".join(types) or "none")

    return run


@dataclass(frozen=True)
class Timed:
    """A model that is timed: what continues prompts by it, and in what runtime."""

    run: Continue
    runtime: str = "torch"


def measure_generation(
    models: Sequence[Timed], inputs: Mapping[int, Sequence[Inputs]], options: GenerationOptions, runs: int
) -> list[Generation]:
    """Time greedy generation of exactly `options.new_tokens` tokens, an end token notwithstanding.

    Args:
        inputs: by batch size, the prompt of each model, of the same shape.
    """
    found = {batch: _continued(models, mine, options, runs) for batch, mine in inputs.items()}
    first = next(iter(inputs.values()))
    return [
        _recorded(model.runtime, {batch: each[place] for batch, each in found.items()}, first[place], options)
        for place, model in enumerate(models)
    ]


def _continued(
    models: Sequence[Timed], inputs: Sequence[Inputs], options: GenerationOptions, runs: int
) -> list[list[Continued]]:
    """What every model's continuations took, without those that warmed it up."""
    found: list[list[Continued]] = [[] for _ in models]

    def call(place: int) -> Callable[[], None]:
        return lambda: found[place].append(models[place].run(inputs[place], options.new_tokens))

    measure_latency([call(place) for place in range(len(models))], runs=runs, warmup=options.decode_warmup)
    return [each[options.decode_warmup :] for each in found]


def _recorded(
    runtime: str, found: Mapping[int, Sequence[Continued]], inputs: Inputs, options: GenerationOptions
) -> Generation:
    ids = inputs["input_ids"]
    prompt, new = ids.shape[1], options.new_tokens
    runs = next(iter(found.values()))
    return Generation(
        prompt_tokens=prompt,
        new_tokens=new,
        runs=len(runs),
        warmup=options.decode_warmup,
        device=describe_device(ids.device),
        threads=torch.get_num_threads(),
        runtime=runtime,
        cache_dtype=runs[-1].cache_dtype,
        cache_bytes_per_token=runs[-1].cache_bytes,
        speeds={
            rows: Speed(
                prefill_per_second=Quartiles.of([rows * prompt / one.prefill for one in each]),
                decode_per_second=Quartiles.of([rows * (new - 1) / one.decode for one in each]),
            )
            for rows, each in found.items()
        },
    )
