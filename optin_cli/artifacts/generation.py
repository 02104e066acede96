"""Records of greedy generation: its speed, its cache of keys and values, and what a draft saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import quantiles

from optin_cli.artifacts.base import Frozen, timed_on


class Quartiles(Frozen):
    """Median of several measurements, and the quartiles around it."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Those of at least one value, interpolated between neighbours."""
        lower, median, upper = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
        return cls(lower=lower, median=median, upper=upper)

    def words(self) -> str:
        """The median, and the quartiles in brackets."""
        lower, median, upper = (f"{one:,.4g}" if one < 1000 else f"{one:,.0f}" for one in vars(self).values())
        return f"{median} ({lower} to {upper})"


class Speed(Frozen):
    """Tokens per second over all rows of a batch.

    prefill_per_second: of the prompt, until the first token is chosen. decode_per_second: of the tokens after that one.
    """

    prefill_per_second: Quartiles
    decode_per_second: Quartiles


class Generation(Frozen):
    """Speed of greedy generation with a cache, by batch size.

    prompt_tokens, new_tokens: of each row. cache_bytes_per_token: of the keys and values that the layers hold behind a
    generation, of type `cache_dtype`, for each token of a row that the model has read. runtime: what ran the model.
    """

    prompt_tokens: int
    new_tokens: int
    runs: int
    warmup: int
    device: str
    threads: int
    runtime: str = "torch"
    cache_dtype: str
    cache_bytes_per_token: float
    speeds: dict[int, Speed]

    @property
    def timed_on(self) -> str:
        """The device and, of a CPU, its threads, in words."""
        return timed_on(self.device, self.threads)

    def rows(self, other: Generation | None) -> list[tuple[str, str, str, float | None]]:
        """Each measure in words: what it is, this model's value, the other's, and this over other."""
        found = []
        for batch, mine in self.speeds.items():
            theirs = None if other is None else other.speeds.get(batch)
            for name, of, tokens in (
                ("prefill", "prefill_per_second", f"{self.prompt_tokens} tokens"),
                ("decode", "decode_per_second", f"{self.new_tokens} tokens after {self.prompt_tokens}"),
            ):
                here, there = getattr(mine, of), None if theirs is None else getattr(theirs, of)
                ratio = None if there is None else here.median / there.median
                words = f"{name} tokens/s, batch {batch}, {tokens}"
                found.append((words, here.words(), "" if there is None else there.words(), ratio))
        held = None if other is None else other.cache_bytes_per_token
        types = dict.fromkeys((self.cache_dtype, self.cache_dtype if other is None else other.cache_dtype))
        found.append(
            (
                f"KV-cache bytes/token, {' and '.join(types)}",
                f"{self.cache_bytes_per_token:,.0f}",
                "" if held is None else f"{held:,.0f}",
                self.cache_bytes_per_token / held if held else None,
            )
        )
        return found


class Draft(Frozen):
    """What a model is worth as the draft of another in greedy speculative decoding (arXiv 2211.17192), at batch 1.

    original: the model whose text is generated. draft_tokens: most that are proposed at once. prompts: texts that were
    continued, each by `new_tokens` after at most `prompt_tokens`. passes: of the original over all. drafted, accepted:
    tokens that the draft proposed, and those of them that the original chose too; acceptance: their ratio. same:
    continuations equal to those of the original alone. tokens_per_second, alone_per_second: with the draft and by the
    original alone, reading the prompt included; quartiles over the prompts. speedup: seconds of the original alone over
    those with the draft, all prompts together.
    """

    original: str
    draft_tokens: int
    prompts: int
    prompt_tokens: int
    new_tokens: int
    passes: int
    drafted: int
    accepted: int
    acceptance: float | None
    same: int
    device: str
    threads: int
    tokens_per_second: Quartiles
    alone_per_second: Quartiles
    speedup: float

    @property
    def timed_on(self) -> str:
        """The device and, of a CPU, its threads, in words."""
        return timed_on(self.device, self.threads)

    def rows(self) -> Mapping[str, str]:
        """Each measure in words, by what it is."""
        rate = "none drafted" if self.acceptance is None else f"{self.acceptance:.4f}"
        return {
            f"acceptance rate, drafts of {self.draft_tokens} tokens for {self.original}": rate,
            "tokens per pass of the original": f"{self.prompts * self.new_tokens / self.passes:.2f}",
            "tokens/s with the draft, batch 1": self.tokens_per_second.words(),
            "tokens/s of the original alone": self.alone_per_second.words(),
            "speed-up by the draft": f"{self.speedup:.3f}",
            "continuations as by the original alone": f"{self.same} of {self.prompts}",
        }
