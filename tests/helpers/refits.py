"""Image families to refit, and their batches."""

from helpers.models import make_pixels

from optin_cli.data.batch import Batch

REFITTED = {
    "timm-vit": 0.7,
    "timm-swin": 0.7,
    "swinv2": 0.7,
    "timm-convnext": 0.7,
    "mobilenet_v2": 0.7,
    "timm-resnet": 0.7,
    "timm-vgg-bn": 0.2,
}
"""Share of units to keep by family; few of VGG's layers of up to 512 channels, whose solutions would take a minute."""


def image_batch(model, seed=0, rows=8):
    return Batch(make_pixels(model, rows, seed=seed), None, tuple(f"{seed}.{row}" for row in range(rows)))
