"""Task names, files and folders in; samples, then batches of token ids or of pixels out.

`rows` reads whatever holds rows, `samples` picks columns and, by `selecting`, rows whatever their order, `labels`
translates the data's labels into the model's, `batches` tokenises, and `pairs` does texts that are compared. For
question answering `answers` reads the answers, and `windows` tokenises contexts longer than a model holds. For images
`galleries` finds them, `images` selects and checks them, `decoding` decodes one, and `image_batches` all.
"""

from __future__ import annotations

from optin_cli.data.images.samples import ImageSamples
from optin_cli.data.text.samples import Samples

AnySamples = Samples | ImageSamples
