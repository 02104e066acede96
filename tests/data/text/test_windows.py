"""Windows over long contexts of question answering."""

from itertools import pairwise

import pytest
from helpers.models import tiny_tokenizer
from helpers.questions import LETTERS

from optin_cli.data.text.windows import cut_windows
from optin_cli.errors import UsageError


def test_windows_cover_the_context_and_share_the_stride():
    context = LETTERS
    windows = cut_windows(["good", "bad"], [context, "a b"], tiny_tokenizer(), max_length=10, stride=2)
    assert windows.owners == [0, 0, 0, 0, 0, 1]
    assert windows.nulls == [0] * 6
    seen = []
    for ids, spans in zip(windows.fields["input_ids"], windows.spans, strict=True):
        assert len(ids) == len(spans) <= 10
        seen.append([(int(a), int(b)) for a, b in spans if a >= 0])
        assert ids[:3] == [2, ids[1], 3]
        assert (spans[:3] == -1).all()
        assert (spans[-1] == -1).all()
    for one, following in pairwise(seen[:5]):
        assert one[-2:] == following[:2]
    assert "".join(context[a:b] for a, b in sorted({s for window in seen[:5] for s in window})) == context.replace(
        " ", ""
    )


def test_long_questions_are_cut():
    windows = cut_windows([LETTERS], ["good film"], tiny_tokenizer(), max_length=13, stride=2)
    assert windows.fields["input_ids"][0].index(3) == 1 + 5, "half of the ten tokens that are not special"
    assert windows.owners == [0]


@pytest.mark.parametrize(("length", "stride"), [(4, 2), (12, -1)])
def test_impossible_windows_are_refused(length, stride):
    with pytest.raises(UsageError, match="at least 5 tokens, and to share 0 or more"):
        cut_windows(["good"], ["a b"], tiny_tokenizer(), max_length=length, stride=stride)


def test_the_smallest_windows_hold_one_token_of_context():
    windows = cut_windows(["good bad"], ["a b c"], tiny_tokenizer(), max_length=5, stride=128)
    assert windows.owners == [0, 0, 0]
