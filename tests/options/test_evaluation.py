"""Evaluation options out of range are refused."""

import pytest

from optin_cli.errors import UsageError
from optin_cli.options.evaluation import AnswerOptions


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"doc_stride": -1}, "doc_stride is -1; expected at least 0"),
        ({"max_answer": 0}, "max_answer is 0; expected at least 1"),
    ],
)
def test_impossible_options_are_refused(values, words):
    with pytest.raises(UsageError, match=words):
        AnswerOptions(**values)
