"""Image families to refit, and their batches."""

from helpers.models import IMAGES, make_pixels

from optin_cli.data.batch import Batch

REFITTED = [
    family
    for family in ("timm-vit", "timm-swin", "swinv2", "timm-convnext", "mobilenet_v2", "timm-resnet", "timm-vgg-bn")
    if family in IMAGES
]


def image_batch(model, seed=0, rows=8):
    return Batch(make_pixels(model, rows, seed=seed), None, tuple(f"{seed}.{row}" for row in range(rows)))
