"""Text of an archive's graph that torch would evaluate is arithmetic of sizes, and nothing else."""

import pytest

from optin_cli.exporting.vetting import _is_container, _is_guard, _is_operator, _is_size

S = "Symbol('s43', positive=True, integer=True)"


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (_is_size, S),
        (_is_size, f"Mul(Integer(32), {S})"),
        (_is_size, f"Add(Integer(-1), FloorDiv({S}, Integer(2)))"),
        (_is_size, f"Pow({S}, Integer(2))"),
        (_is_size, "2*s43 + u0"),
        (_is_guard, "L['attention_mask'].size()[0] == L['input_ids'].size()[0]"),
        (_is_guard, "2 <= L['x'].size()[1] and L['x'].size()[1] <= 64"),
        (_is_operator, "torch.ops.aten.linear.default"),
        (_is_operator, "torch.ops.aten.gelu.default"),
        (_is_operator, "_operator.getitem"),
        (_is_operator, "torch.sym_max"),
        (_is_container, '[1, {"type": "builtins.dict", "context": "[\\"logits\\"]", "children_spec": []}]'),
    ],
)
def test_what_exporters_write_passes(check, text):
    assert check(text)


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (_is_size, "__import__('os').system('true')"),
        (_is_size, "open('x')"),
        (_is_size, "().__class__"),
        (_is_size, "s1.size()"),
        (_is_size, "s1 ** s1"),
        (_is_size, "Pow(Integer(10), Integer(1000000000))"),
        (_is_size, "Pow(Pow(Integer(9), Integer(8)), Integer(8))"),
        (_is_size, f"Integer({1 << 63})"),
        (_is_size, "Symbol('a b')"),
        (_is_size, "[s1 for s1 in s2]"),
        (_is_size, "(lambda: 1)()"),
        (_is_size, "f'{s1}'"),
        (_is_size, "(" * 1500 + ")" * 1500),
        (_is_size, "s1 +" * 1000 + "s1"),
        (_is_guard, "L['x'].numpy()"),
        (_is_guard, "open('x', 'w') == 1"),
        (_is_guard, "L['x'].size()[0] == 1 #"),
        (_is_guard, "(L['x'].size()[0]\n)"),
        (_is_operator, "torch.hub.load"),
        (_is_operator, "torch.ops.aten.save.default"),
        (_is_operator, "torch.ops.aten.from_file.default"),
        (_is_operator, "torch.ops.aten.none_such.default"),
        (_is_operator, "torch.ops.mine.evil.default"),
        (_is_operator, "_operator.methodcaller"),
        (_is_operator, "os.system"),
        (_is_container, '[1, {"type": "os.path", "context": null, "children_spec": []}]'),
        (_is_container, '[1, {"type": "builtins.dict", "context": "[\\"x=1\\"]", "children_spec": []}]'),
        (_is_container, '[1, {"type": "builtins.dict", "context": "[{\\"__enum__\\": true}]", "children_spec": []}]'),
    ],
)
def test_anything_else_is_refused(check, text):
    assert not check(text)
