"""Options that several stages have."""

from __future__ import annotations

from optin_cli.options.declare import Option

DEFAULT_SEQ_LEN = 128


SEQ_LEN = Option("--seq-len", f"Sequence length that costs are stated for. (default: {DEFAULT_SEQ_LEN})", "N")


SEED = Option("--seed", "Seed of sample selection and probes.")


BATCH_SIZE = Option("--batch-size", "Samples at once.", above=0)


MAX_LENGTH = Option("--max-length", "Longest sample, in tokens. (default: 128)", low=1)
