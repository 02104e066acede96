"""Options that several stages have."""

from optin_cli.options.declare import BUDGET, DATA, MODEL, TIMING, Option

MOST_ROWS = 1 << 16
"""Most samples at once."""
MOST_LENGTH = 1 << 20
"""Most tokens of a text."""
MOST_RUNS = 100_000
"""Most repetitions of anything."""
THREADS = Option("--threads", "CPU threads.", low=1, most=4096, panel=MODEL, unset="all cores")
DEFAULT_SEQ_LEN = 128
"""Tokens per sequence that costs are stated for where no other number is asked for."""
DEFAULT_WINDOW = 512
"""The same for models that continue a text, and the tokens of a window of it."""
SEQ_LEN = Option(
    "--seq-len",
    "Sequence length for which MACs are reported, and tokens of a window of running text.",
    "N",
    panel=TIMING,
    unset=f"{DEFAULT_SEQ_LEN}; decoders: {DEFAULT_WINDOW}",
)
SEED = Option("--seed", "Seed for choosing samples.", low=0, most=2**63 - 1, panel=DATA)
BATCH_SIZE = Option(
    "--batch-size",
    "Samples at once; fewer images above 224 x 224 pixels.",
    above=0,
    most=MOST_ROWS,
    panel=MODEL,
)
DEFAULT_LENGTH = 128
"""Most tokens of a sample where no other number is asked for."""
DEFAULT_MASK_EVERY = 7
"""Of so many tokens one is masked where no other number is asked for: about the 15 % that models are trained with."""
MAX_LENGTH = Option(
    "--max-length",
    "Longest sample, in tokens; more are cut off.",
    low=1,
    most=MOST_LENGTH,
    panel=DATA,
    unset=str(DEFAULT_LENGTH),
)
KEEP_FLOPS = Option(
    "--keep-flops",
    "Share of the model's compute (MACs) to keep: 0.5.",
    metavar="SHARE",
    panel=BUDGET,
    above=0,
    high=1,
    noun="The share of macs to keep",
)
MAX_DROP = Option("--max-drop", metavar="DROP", low=0, noun="The allowed drop", panel=BUDGET)
MEASURED = 0.5
"""The confidence at which a drop is judged as measured."""
CONFIDENCE = Option(
    "--confidence",
    "How sure --max-drop must be that the drop is within it, by the paired standard error over samples: 0.95. At "
    f"{MEASURED} the measured drop decides.",
    low=0.5,
    below=1,
    noun="The confidence",
    panel=BUDGET,
)
