"""Architecture descriptions that do not fit a model name every problem."""

import pytest
from helpers.descriptions import described, put
from helpers.models import (
    build,
    structure_of,
)

from optin_cli.errors import ArchitectureError


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda raw, _head, _neuron: put(raw["stacks"][0], "blocks", "encoder.layers.*"), ["encoder.layers.*"]),
        (
            lambda _raw, _head, neuron: neuron["slices"][0]["parameters"].append("inter.dense.weight"),
            ["parameter bert.encoder.layer.0.inter.dense.weight does not exist", "encoder.2.neuron"],
        ),
        (lambda _raw, _head, neuron: put(neuron["slices"][1], "axis", 0), ["40", "32", "disagree"]),
        (lambda _raw, _head, neuron: put(neuron["slices"][0], "axis", 1), ["has shape (40,), no axis 1"]),
        (
            lambda _raw, _head, neuron: put(neuron, "unit_width", 7),
            ["40, not a multiple of parts x unit width = 1 x 7"],
        ),
        (lambda _raw, head, _neuron: put(head["slices"][0], "parts", 3), ["length 32, not a multiple", "3 x 8"]),
        (
            lambda _raw, head, _neuron: put(head["slices"][0], "parts", [8, [2, "attention.self.attention_head_size"]]),
            ["length 32, not a multiple", "8 + 16"],
        ),
        (lambda _raw, head, _neuron: put(head["slices"][0], "parts", ["attention.self.size"]), ["self.size is None"]),
        (lambda _raw, head, _neuron: put(head, "least", "attention.self.few"), ["attention.self.few is None"]),
        (
            lambda _raw, head, _neuron: put(head, "norms", ["attention.output.LayerNorm"]),
            ["no slice is of bert.encoder.layer.0.attention.output.LayerNorm.weight"],
        ),
        (
            lambda _raw, head, _neuron: put(head, "set_each", {"attention.self.config.heads": 1}),
            ["attribute bert.encoder.layer.0.attention.self.config.heads does not exist"],
        ),
        (lambda _raw, head, _neuron: put(head, "unit_width", "attention.self.size"), ["attention.self.size is None"]),
        (lambda _raw, head, _neuron: put(head, "consumer", "attention.dense"), ["attention.dense does not exist"]),
        (lambda _raw, head, _neuron: put(head, "mixer", "attention.mix"), ["attention.mix does not exist"]),
        (lambda _raw, head, _neuron: put(head, "set_units", ["attention.self.heads"]), ["attribute", "self.heads"]),
        (
            lambda _raw, head, neuron: (
                put(head, "consumer", "here"),
                put(neuron, "consumer", "there"),
                put(neuron["slices"][1], "axis", 2),
            ),
            ["layer.0.here", "layer.0.there", "no axis 2", "layer.2.here"],
        ),
    ],
)
def test_descriptions_that_do_not_fit_name_every_problem(tmp_path, change, named):
    model = build("bert")
    with pytest.raises(ArchitectureError) as caught:
        structure_of(model, architecture=described(tmp_path, change))
    assert all(name in caught.value.message for name in [*named, "'bert'", "BertForSequenceClassification"])


def stems(model):
    return {group.name: group.units for group in structure_of(model).groups if group.block == "stem"}


def test_channels_of_a_stem_are_units_where_no_residual_stream_begins_with_them():
    model = build("timm-mobilenetv2")
    assert stems(model) == {"stem.channel": model.conv_stem.out_channels}
    model.blocks[0][0].has_skip = True
    assert stems(model) == {}
    stem = build("mobilenet_v2").mobilenet_v2.conv_stem
    assert stems(build("mobilenet_v2")) == {"stem.channel": stem.first_conv.convolution.out_channels}
    expanded = build("mobilenet_v2-expanded").mobilenet_v2.conv_stem
    assert stems(build("mobilenet_v2-expanded")) == {
        "stem.first": expanded.first_conv.convolution.out_channels,
        "stem.second": expanded.expand_1x1.convolution.out_channels,
    }
