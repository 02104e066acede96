"""Artifacts: equal content gives equal bytes, and whatever does not belong is refused with its place."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from optin_cli.artifacts.base import Source, Totals, Workload, parse, require_description, require_source, to_json
from optin_cli.artifacts.costs import GroupCost, Profile
from optin_cli.artifacts.mask import Budget, GroupMask, Mask
from optin_cli.artifacts.reading import KINDS
from optin_cli.errors import ArtifactError

SOURCE = Source(name="tiny", sha256="a" * 64)


def example_mask(**changes):
    fields = {
        "optin_version": "0.1.0",
        "options": {"algorithm": "exact", "minima": {"head": 1}, "protect": ["encoder.0.*"], "share": 0.5},
        "inputs": {"checkpoint": SOURCE},
        "workload": Workload(seq_len=16),
        "budget": Budget(asked={"macs": 0.5}, reached={"macs": 0.48, "parameters": 0.6}),
        "importance_lost": 0.1,
        "groups": {
            "encoder.0.head": GroupMask(units=4, kept=[0, 2]),
            "encoder.0.neuron": GroupMask(units=3, kept=[]),
        },
    }
    return Mask(**(fields | changes))


def make_profile():
    cost = {"block": "encoder.0", "unit_macs": 1.5, "unit_parameters": 2}
    return Profile(
        optin_version="0.1.0",
        options={},
        inputs={"checkpoint": SOURCE},
        family="bert",
        architecture="BertModel",
        workload=Workload(seq_len=16),
        totals=Totals(macs=10, parameters=20, bytes=80),
        groups={"encoder.0.head": GroupCost(kind="head", units=4, unit_width=8, **cost)},
    )


@pytest.mark.parametrize("artifact", [example_mask(), make_profile()], ids=lambda a: a.kind)
def test_round_trip_keeps_value_and_bytes(artifact):
    text = artifact.dump()
    again = parse(type(artifact), text, "file")
    assert again == artifact
    assert again.dump() == parse(type(artifact), text.encode(), "file").dump() == text
    assert json.loads(text)["schema"] == f"optin.{artifact.kind}/1"
    assert text.endswith("}\n")
    with pytest.raises(ValidationError):
        artifact.optin_version = "2"


def test_a_mask_reads_well():
    text = example_mask().dump()
    assert '    "encoder.0.head": {\n      "units": 4,\n      "kept": [0, 2]\n    },\n' in text
    assert '"protect": ["encoder.0.*"]' in text


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(VALUES)
def test_json_holds_the_same_value(value):
    assert json.loads(to_json(value)) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("nan")]])
def test_json_takes_no_nan(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(value)


def edited(change):
    raw = json.loads(example_mask().dump())
    change(raw, raw["groups"]["encoder.0.head"])
    return json.dumps(raw)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda _raw, head: head.update(kept=[0, 0]), ["groups.encoder.0.head: index 0 is listed more than once"]),
        (lambda _raw, head: head.update(kept=[0, 4]), ["index 4 is out of range: the group has units 0 to 3"]),
        (lambda _raw, head: head.update(kept=[-1]), ["index -1 is out of range"]),
        (lambda _raw, head: head.update(kept=[2, 0]), ["must be in ascending order"]),
        (lambda _raw, head: head.update(kept=[0.5]), ["groups.encoder.0.head.kept.0"]),
        (lambda _raw, head: head.update(kept="all"), ["groups.encoder.0.head.kept"]),
        (lambda _raw, head: head.update(units=0, kept=[]), ["groups.encoder.0.head.units"]),
        (lambda _raw, head: head.pop("units"), ["groups.encoder.0.head.units: Field required"]),
        (lambda _raw, head: head.update(unit=1), ["groups.encoder.0.head.unit: Extra inputs"]),
        (lambda raw, _head: raw.update(made="today"), ["made: Extra inputs are not permitted"]),
        (lambda raw, _head: raw.update(importance_lost="much"), ["importance_lost"]),
        (lambda raw, _head: raw.update(importance_lost=-1), ["importance_lost: Input should be greater than"]),
        (lambda raw, _head: raw.update(importance_lost="0.1"), ["importance_lost: Input should be a valid number"]),
        (lambda raw, _head: raw["budget"]["reached"].update(macs=-3.1), ["budget.reached.macs"]),
        (lambda raw, _head: raw["budget"]["asked"].update(macs=2), ["budget.asked.macs"]),
        (lambda raw, _head: raw["workload"].update(batch_size=0), ["workload.batch_size"]),
        (lambda raw, _head: raw["workload"].update(seq_len=0), ["workload.seq_len"]),
        (lambda raw, _head: raw["workload"].update(seq_len=10**9), ["workload.seq_len"]),
        (lambda raw, _head: raw.update(workload={"image": [3, 0, 4]}), ["workload.image.1"]),
        (lambda _raw, head: head.update(units=True), ["groups.encoder.0.head.units"]),
        (lambda _raw, head: head.update(units="4"), ["groups.encoder.0.head.units"]),
        (lambda _raw, head: head.update(units=10**7), ["groups.encoder.0.head.units"]),
        (
            lambda raw, _head: raw["groups"].update({f"g{n}": {"units": 1 << 20, "kept": []} for n in range(17)}),
            ["the groups have 17825799 units in all"],
        ),
        (
            lambda raw, head: (raw.pop("budget"), raw.update(extra=1), head.update(kept=[9])),
            ["budget: Field required", "extra: Extra", "index 9"],
        ),
    ],
)
def test_invalid_masks_name_every_place(change, named):
    with pytest.raises(ArtifactError, match=r"my\.json is not a valid mask file") as caught:
        parse(Mask, edited(change), "my.json")
    assert all(name in caught.value.message for name in named), caught.value.message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda raw, _head: raw["totals"].update(macs=5), "encoder.0.head takes 6 MACs of the model's 5"),
        (lambda raw, _head: raw["totals"].update(parameters=7), "encoder.0.head takes 8 parameters of the model's 7"),
        (lambda raw, _head: raw["totals"].update(macs=0), "totals.macs"),
        (lambda _raw, head: head.update(unit_macs=-5000), "groups.encoder.0.head.unit_macs"),
        (lambda _raw, head: head.update(unit_parameters=-1), "groups.encoder.0.head.unit_parameters"),
        (lambda _raw, head: head.update(shared={"x": {"macs": -1, "parameters": 0}}), "shared.x.macs"),
    ],
)
def test_costs_that_cannot_be_are_refused(change, named):
    raw = json.loads(make_profile().dump())
    change(raw, raw["groups"]["encoder.0.head"])
    with pytest.raises(ArtifactError) as caught:
        parse(Profile, json.dumps(raw), "my.json")
    assert named in caught.value.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (example_mask().dump().replace('"importance_lost": 0.1', '"importance_lost": NaN'), "NaN is not a number"),
        (example_mask().dump().replace('"importance_lost": 0.1', '"importance_lost": 1e999'), "too large a number"),
        (example_mask().dump().replace('"groups": {', '"groups": {}, "groups": {'), "'groups' is given twice"),
        ("[" * 100_000, "nested more than 100 levels"),
        (make_profile().dump(), r"is a profile file \(schema 'optin.profile/1'\); expected a mask file"),
        (edited(lambda raw, _head: raw.update(schema="optin.mask/2")), r"schema 'optin.mask/2'\); expected a mask"),
        (edited(lambda raw, _head: raw.pop("schema")), "not an optin artifact of that kind"),
        ("[1, 2]", "not an optin artifact of that kind"),
        ("null", "not an optin artifact of that kind"),
        ("", "is not valid JSON"),
        (example_mask().dump()[:-20], "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"\x80\x02junk", "is not valid JSON"),
    ],
)
def test_other_content_is_refused(content, message):
    with pytest.raises(ArtifactError, match=message):
        parse(Mask, content, "my.json")


def test_every_kind_states_its_schema():
    schemas = [k.model_fields["schema_"].default for k in KINDS]
    assert schemas == [f"optin.{k.kind}/1" for k in KINDS]


def test_inputs_must_be_the_ones_made_from():
    mask = example_mask()
    require_source(mask, "m.json", "checkpoint", Source(name="moved", sha256="a" * 64))
    other = Source(name="other", sha256="b" * 64)
    with pytest.raises(ArtifactError) as caught:
        require_source(mask, "m.json", "checkpoint", other)
    assert all(part in caught.value.message for part in ("m.json", "tiny", "a" * 12, "other", "b" * 12))
    with pytest.raises(ArtifactError, match="something unnamed"):
        require_source(mask, "m.json", "scores", other)


MINE = Source(name="mine.json", sha256="b" * 64)


@pytest.mark.parametrize("same", [None, MINE, Source(name="renamed.json", sha256=MINE.sha256)])
def test_equal_descriptions_pass(same):
    made_with = {} if same is None else {"architecture": MINE}
    require_description(example_mask(inputs={"checkpoint": SOURCE, **made_with}), "m.json", same, "tiny was opened")


@pytest.mark.parametrize(
    ("made_with", "found", "words"),
    [
        (MINE, None, ["made with the architecture description mine.json (sha256 bbbb", "with the shipped"]),
        (None, MINE, ["made with the shipped", "tiny was opened with the architecture description mine.json"]),
        (MINE, Source(name="mine.json", sha256="c" * 64), ["(sha256 bbbbbbbbbbbb)", "(sha256 cccccccccccc)"]),
    ],
)
def test_another_description_is_refused(made_with, found, words):
    own = {} if made_with is None else {"architecture": made_with}
    with pytest.raises(ArtifactError) as caught:
        require_description(example_mask(inputs={"checkpoint": SOURCE, **own}), "m.json", found, "tiny was opened")
    assert all(word in caught.value.message for word in ["m.json", *words])
    assert "--architecture" in caught.value.hint
