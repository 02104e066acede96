"""Task names, files and folders in; samples, then batches of token ids or of pixels out.

`rows` reads whatever holds rows, `samples` picks columns and, by `selecting`, rows whatever their order, `labels`
translates the data's labels into the model's, `batches` tokenises, and `pairs` does texts that are compared. For
question answering `answers` reads the answers, and `windows` tokenises contexts longer than a model holds. For images
`galleries` finds them, `images` selects and checks them, `decoding` decodes one, and `image_batches` all.
"""

from optin_cli.data.answers import Answers
from optin_cli.data.batches import DEFAULT_LENGTH, Batch, cut_batches, make_batches, usable_length
from optin_cli.data.image_batches import ImageBatches, image_batches
from optin_cli.data.images import ImageSamples, load_image_samples
from optin_cli.data.labels import image_class_ids, label_ids, label_values
from optin_cli.data.pairs import pair_batches
from optin_cli.data.samples import Label, Samples, load_samples
from optin_cli.data.windows import Windows, cut_windows

AnySamples = Samples | ImageSamples

__all__ = [
    "DEFAULT_LENGTH",
    "Answers",
    "AnySamples",
    "Batch",
    "ImageBatches",
    "ImageSamples",
    "Label",
    "Samples",
    "Windows",
    "cut_batches",
    "cut_windows",
    "image_batches",
    "image_class_ids",
    "label_ids",
    "label_values",
    "load_image_samples",
    "load_samples",
    "make_batches",
    "pair_batches",
    "usable_length",
]
