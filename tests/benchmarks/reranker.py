"""What pruning leaves of a reranker: an encoder is fine-tuned on pairs of sentences for a few minutes, then pruned.

    python tests/benchmarks/reranker.py --encoder DIR [--data DIR] [--steps N] [--keep SHARE] [--work DIR]

The reranker reads both sentences at once and puts out how alike they are, as CrossEncoder of sentence-transformers has
it. It is kept in the working folder and not trained again. Prints one line of JSON on stdout: correlations of the whole
and the pruned model, by optin and, where that library is installed, by CrossEncoder in a process without optin.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import optin_cli
from optin_cli.checkpoints.sentences import is_installed
from optin_cli.data.spec import DataSpec
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.refit import RefitOptions
from optin_cli.searching.limits import Limits

SHARED = Path(__file__).resolve().parents[3] / "shared"
BATCH, LENGTH, RATE, WARM = 32, 96, 8e-5, 0.1
"""Pairs a step, tokens a pair, the highest learning rate and the share of steps until it is reached."""
HIGHEST = 5.0
"""What alike sentences are labelled in STS-B."""
ALONE = """
import json, sys
sys.modules["optin_cli"] = None
from scipy.stats import spearmanr
from sentence_transformers import CrossEncoder
folder, data = sys.argv[1:]
rows = [json.loads(line) for line in open(data)]
model = CrossEncoder(folder, device="cpu", trust_remote_code=True)
scores = model.predict([(row["sentence1"], row["sentence2"]) for row in rows], batch_size=64)
print(spearmanr(scores, [row["label"] for row in rows]).statistic)
"""


def train(encoder: str, data: Path, steps: int, folder: Path) -> None:
    """Fine-tune an encoder with one output on labels scaled to 0 to 1, and save it as a CrossEncoder."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=1).train()
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, WARM, anneal_strategy="linear")
    drawn = torch.cat([torch.randperm(len(rows)) for _ in range(1 + steps * BATCH // len(rows))]).split(BATCH)
    for step in range(steps):
        batch = [rows[number] for number in drawn[step].tolist()]
        texts = [[row[side] for row in batch] for side in ("sentence1", "sentence2")]
        inputs = tokenizer(*texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        labels = torch.tensor([row["label"] / HIGHEST for row in batch])
        loss = F.binary_cross_entropy_with_logits(model(**inputs).logits.squeeze(-1), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            sys.stderr.write(f"step {step} of {steps}: loss {loss.item():.4f}\n")
    model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--data", type=Path, default=SHARED / "data/stsb")
    parser.add_argument("--steps", type=int, default=360)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--work", type=Path, default=Path("reranker"))
    options = parser.parse_args()
    if not (options.data / "train.jsonl").is_file():
        sys.exit(f"Skipped: needs pairs of sentences ({options.data}).")
    whole, small = options.work / "whole", options.work / "small"
    start = time.perf_counter()
    if not whole.is_dir():
        train(options.encoder, options.data, options.steps, whole)
    trained = time.perf_counter()
    calibration = DataSpec("stsb", options.data)
    scores = optin_cli.score(whole, calibration)
    mask = optin_cli.search(scores, Limits(keep_macs=options.keep))
    manifest = optin_cli.prune(whole, mask, small, refit=calibration, options=RefitOptions(), force=True)
    found = optin_cli.evaluate(small, "stsb", options.data, against=whole, options=EvalOptions(latency_runs=0))
    assert found.against is not None
    result = {
        "seconds": {"training": trained - start, "pruning": time.perf_counter() - trained},
        "certificate": manifest.certificate.model_dump(),
        "bytes": [manifest.before.bytes, manifest.after.bytes],
        "spearman": [found.against.metrics["spearman"], found.metrics["spearman"]],
    }
    if is_installed():
        line = [sys.executable, "-c", ALONE, str(small), str(options.data / "validation.jsonl")]
        run = subprocess.run(line, capture_output=True, text=True, check=True)
        result["spearman of CrossEncoder, pruned"] = float(run.stdout.split()[-1])
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
