"""Retrieval and reranking, against rankings worked out one document at a time."""

import json
import math

import pytest
import torch
from helpers.models import save_checkpoint, tiny_tokenizer
from helpers.running import call, done
from helpers.searches import DOCUMENTS, JUDGED, QUERIES, candidates_file, corpus_folder
from helpers.sentences import sentence_folder, write_json

from optin_cli.checkpoints.checkpoint import load
from optin_cli.evaluation.metrics import score_searches


def evaluated(folder, task, data):
    run = done("eval", folder, "--task", task, "--data", data, "--latency-runs", 0, "--json")
    return json.loads(run.out)["metrics"]


def ndcg(scores, gains, top=10):
    def sums(order):
        return sum(gains[n] / math.log2(place + 2) for place, n in enumerate(order[:top]))

    best = sorted(range(len(gains)), key=lambda n: -gains[n])
    return sums(sorted(range(len(gains)), key=lambda n: -scores[n])) / sums(best)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_documents_are_ranked_as_the_model_compares_embeddings(tmp_path, here, similarity):
    folder = sentence_folder(tmp_path / "st", ("mean",), after=())
    settings = {"prompts": {"query": "good ", "document": "bad "}, "similarity_fn_name": similarity}
    write_json(folder / "config_sentence_transformers.json", settings)
    checkpoint = load(folder)

    def vector(text):
        return checkpoint.model(**tiny_tokenizer()([text], return_tensors="pt")).last_hidden_state[0].mean(dim=0)

    def alike(a, b):
        if similarity == "cosine":
            return float(torch.cosine_similarity(a, b, dim=0))
        if similarity == "dot":
            return float(a @ b)
        return -float((a - b).abs().sum() if similarity == "manhattan" else (a - b).square().sum())

    texts = [" ".join(filter(None, parts)) for parts in DOCUMENTS.values()]
    documents = [vector(f"bad {text}") for text in texts]
    expected = []
    for name, text in QUERIES.items():
        gains = [{d: grade for q, d, grade in JUDGED if q == name}.get(document, 0) for document in DOCUMENTS]
        if any(gains):
            query = vector(f"good {text}")
            expected.append(ndcg([alike(query, document) for document in documents], gains))
    found = evaluated(folder, "retrieval", corpus_folder(here / "data"))
    assert found["ndcg@10"] == pytest.approx(sum(expected) / len(expected), abs=1e-6)
    assert found["recall@10"] == 1.0


@pytest.mark.parametrize("head", ["base", "regression"])
def test_candidates_are_ranked_by_encoders_and_by_rerankers(tmp_path, here, head):
    folder = save_checkpoint(tmp_path / "model", head=head)
    checkpoint, tokenizer = load(folder), tiny_tokenizer()

    def vector(text):
        return checkpoint.model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0].mean(dim=0)

    def score(query, document):
        if head == "base":
            return float(torch.cosine_similarity(vector(query), vector(document), dim=0))
        return float(checkpoint.model(**tokenizer([query], [document], return_tensors="pt")).logits)

    data = candidates_file(here / "rows.jsonl")
    expected = []
    for row in map(json.loads, data.read_text().splitlines()):
        positive = [row["positive"]] if isinstance(row["positive"], str) else row["positive"]
        scores = [score(row["query"], text) for text in [*positive, *row["negative"]]]
        expected.append(ndcg(scores, [1] * len(positive) + [0] * len(row["negative"])))
    found = evaluated(folder, "reranking", data)
    assert list(found) == ["ndcg@10", "mrr@10", "map"]
    assert found["ndcg@10"] == pytest.approx(sum(expected) / len(expected), abs=1e-6)


@pytest.mark.parametrize("lowest", [0.1, -0.5])
def test_metrics_of_a_ranking_made_by_hand(lowest):
    scores = torch.tensor([0.9, 0.8, 0.7, 0.1]) - 0.1 + lowest
    names = ["ndcg@10", "recall@10", "mrr@10", "map"]
    values, error = score_searches(names, [(scores, torch.tensor([0, 2, 0, 1])), (scores, torch.tensor([1, 0, 0, 0]))])
    one = (2 / math.log2(3) + 1 / math.log2(5)) / (2 + 1 / math.log2(3))
    assert values["ndcg@10"] == pytest.approx((one + 1) / 2)
    assert values["recall@10"] == 1.0
    assert values["mrr@10"] == pytest.approx((1 / 2 + 1) / 2)
    assert values["map"] == pytest.approx(((1 / 2 + 2 / 4) / 2 + 1) / 2)
    assert error == pytest.approx((1 - one) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("head", "task"), [("regression", "retrieval"), ("classes", "reranking"), ("labels", "retrieval")]
)
def test_models_of_another_purpose_are_refused(tmp_path, here, head, task):
    folder = save_checkpoint(tmp_path / "model", head=head)
    data = corpus_folder(here / "data") if task == "retrieval" else candidates_file(here / "rows.jsonl")
    run = call("eval", folder, "--task", task, "--data", data)
    assert (
        run.code == 1 and f"The task {task} is a {task} task, but model is a BertForSequenceClassification" in run.err
    )
