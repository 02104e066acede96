"""Task names, files and folders in; samples, then padded batches of token ids out.

`rows` reads whatever holds rows, `samples` picks columns and a selection that does not depend on row order,
`labels` translates the data's labels into the model's, `batches` tokenises.
"""

from optin_cli.data.batches import Batch, make_batches, usable_length
from optin_cli.data.labels import label_ids
from optin_cli.data.samples import Label, Samples, load_samples

__all__ = ["Batch", "Label", "Samples", "label_ids", "load_samples", "make_batches", "usable_length"]
