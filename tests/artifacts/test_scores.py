"""The scores file: round trip, equal bytes, and every refusal."""

import io
import json
import sys

import numpy as np
import pytest
from safetensors.numpy import load, save, save_file

from optin_cli.artifacts.base import Source, Totals, Workload
from optin_cli.artifacts.part import is_part
from optin_cli.artifacts.reading import artifacts_in, read_artifact
from optin_cli.artifacts.scores import GroupScores, Scores, ScoresHeader, read_scores, write_scores
from optin_cli.errors import ArtifactError
from optin_cli.files import OutputError

UNITS = {"encoder.0.head": 4, "encoder.0.neuron": 6}


def make_scores(**vectors):
    cost = {"block": "encoder.0", "unit_macs": 2.0, "unit_parameters": 3, "estimator": "sketch", "samples": 8}
    header = ScoresHeader(
        optin_version="0.1.0",
        options={"seed": 0},
        inputs={"checkpoint": Source(name="tiny", sha256="a" * 64)},
        family="bert",
        architecture="Bert",
        criterion="trajectory",
        workload=Workload(seq_len=16),
        totals=Totals(macs=100, parameters=200, bytes=800),
        groups={n: GroupScores(kind=n.split(".")[-1], units=u, **cost) for n, u in UNITS.items()},
    )
    importance = {n: np.linspace(0, 1, u, dtype=np.float32) for n, u in UNITS.items()}
    return Scores(header, importance | vectors, {"encoder.0.neuron": np.full(6, 0.1, np.float32)})


def test_round_trip_keeps_value_and_bytes(tmp_path):
    scores = make_scores()
    write_scores(tmp_path / "s", scores)
    again = read_scores(tmp_path / "s")
    assert again.header == scores.header
    for mine, theirs in [(again.importance, scores.importance), (again.standard_error, scores.standard_error)]:
        assert mine.keys() == theirs.keys()
        assert all((mine[n] == theirs[n]).all() and mine[n].dtype == np.float32 for n in mine)
    assert again.content() == scores.content() == (tmp_path / "s").read_bytes()
    assert again.source("s") == scores.source("s")
    with pytest.raises(OutputError, match="already exists"):
        write_scores(tmp_path / "s", scores)
    write_scores(tmp_path / "s", scores, force=True)


def test_bytes_do_not_depend_on_order_or_precision():
    scores = make_scores()
    turned = {n: v.astype(np.float64) for n, v in reversed(scores.importance.items())}
    assert Scores(scores.header, turned, scores.standard_error).content() == scores.content()


def test_scores_come_through_a_pipe(monkeypatch, capfdbinary):
    write_scores("-", make_scores())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(capfdbinary.readouterr().out)))
    assert read_scores("-").header == make_scores().header


def header_of(**changes):
    raw = json.loads(make_scores().header.dump()) | changes
    return {"optin": json.dumps(raw)}


TENSORS = load(make_scores().content())
NEURONS = "importance.encoder.0.neuron"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a complete safetensors file"),
        (make_scores().content()[:-4], "not a complete safetensors file"),
        (make_scores().content()[:100], "not a complete safetensors file"),
        (b"{}", "not a complete safetensors file"),
        (save(TENSORS), "safetensors file without an optin header"),
        (save(TENSORS, metadata={"format": "pt"}), "safetensors file without an optin header"),
        (save(TENSORS, metadata={"optin": "{"}), "is not valid JSON"),
        (save(TENSORS, metadata=header_of(schema="optin.mask/1")), "is a mask file"),
        (save(TENSORS, metadata=header_of(extra=1)), "extra: Extra inputs"),
        (make_scores(**{"encoder.0.head": np.ones(3)}).content(), "is of shape .3,.; expected 4 numbers"),
        (make_scores(**{"encoder.0.head": np.ones((4, 1))}).content(), "is of shape .4, 1.; expected 4 numbers"),
        (save({k: v for k, v in TENSORS.items() if k != NEURONS}, metadata=header_of()), "is missing; expected 6"),
        (make_scores(**{"encoder.0.head": np.array([0, 1, np.nan, 2])}).content(), "encoder.0.head.2 is nan"),
        (make_scores(**{"encoder.0.head": np.array([0, np.inf, 1, 2])}).content(), "encoder.0.head.1 is inf"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_scores(tmp_path / "s")
    assert str(tmp_path / "s") in caught.value.message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist; expected a scores file"):
        read_scores(tmp_path / "none")


def test_the_header_alone_is_no_artifact(tmp_path):
    """As `optin inspect --json` prints it: it has no importances to show or compare."""
    (tmp_path / "s.json").write_text(make_scores().header.dump())
    with pytest.raises(ArtifactError, match=r"s\.json is the header of a scores file without its importances"):
        read_artifact(tmp_path / "s.json")
    assert list(artifacts_in(tmp_path)) == []


@pytest.mark.parametrize("header", ["[" * 5000, '{"schema": ' * 3000, "7"])
def test_a_header_that_is_no_sound_json_is_refused(tmp_path, header):
    path = tmp_path / "s.safetensors"
    save_file({"importance.a": np.ones(2, np.float32)}, path, metadata={"optin": header})
    assert not is_part(path)
    with pytest.raises(ArtifactError):
        read_artifact(path)
