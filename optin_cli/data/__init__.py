"""Task names, files and folders in; samples, then padded batches of token ids out.

`rows` reads whatever holds rows, `samples` picks columns and a selection that does not depend on row order,
`labels` translates the data's labels into the model's, `batches` tokenises. For question answering `answers`
reads the answers, and `windows` tokenises contexts longer than a model holds.
"""

from optin_cli.data.answers import Answers
from optin_cli.data.batches import DEFAULT_LENGTH, Batch, cut_batches, make_batches, usable_length
from optin_cli.data.labels import label_ids, label_values
from optin_cli.data.samples import Label, Samples, load_samples
from optin_cli.data.windows import Windows, cut_windows

__all__ = [
    "DEFAULT_LENGTH",
    "Answers",
    "Batch",
    "Label",
    "Samples",
    "Windows",
    "cut_batches",
    "cut_windows",
    "label_ids",
    "label_values",
    "load_samples",
    "make_batches",
    "usable_length",
]
