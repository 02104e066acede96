"""Tiny checkpoints, data and every artifact of one run of the pipeline, made by the real command line."""

import random
from types import SimpleNamespace

from helpers.running import QUICK, done, write_rows


def places(root):
    """Where things lie that `make` makes."""
    return SimpleNamespace(
        root=root,
        bert=root / "bert",
        other=root / "other",
        train=root / "train.jsonl",
        texts=root / "texts.jsonl",
        scores=root / "bert.scores.safetensors",
        mask=root / "bert.mask.json",
        pruned=root / "bert-pruned",
        evaluation=root / "bert-pruned.eval.json",
        profile=root / "bert.profile.json",
    )


def make(root, run=done):
    """Make them in a folder.

    texts.jsonl holds the sentences of train.jsonl without labels; other/ has other weights than bert/. run: runs a
    command, which must succeed.
    """
    from helpers.models import save_checkpoint, tiny_tokenizer

    for seed, name in enumerate(("bert", "other")):
        save_checkpoint(root / name, num_labels=2, seed=seed, max_position_embeddings=160)
        tiny_tokenizer(model_max_length=128).save_pretrained(root / name)
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdefghijklmnopqrst", k=draw.randint(2, 12))) for _ in range(24)]
    paths = places(root)
    write_rows(paths.train, [{"sentence": t, "label": i % 2} for i, t in enumerate(texts)])
    write_rows(paths.texts, [{"sentence": t} for t in texts])
    run("profile", paths.bert, "-o", paths.profile)
    run("score", paths.bert, "--calib", paths.texts, *QUICK, "-o", paths.scores)
    run("search", paths.scores, "--keep-flops", "0.6", "-o", paths.mask)
    run("prune", paths.bert, "--mask", paths.mask, "--no-refit", "-o", paths.pruned)
    compare = ("--task", "sst2", "--data", paths.train, "--against", paths.bert, "--latency-runs", "2")
    run("eval", paths.pruned, *compare, "-o", paths.evaluation)
    return paths
