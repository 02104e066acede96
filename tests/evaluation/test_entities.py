"""Entities of tagged words by CoNLL's rule, against sentences worked by hand."""

import pytest

from optin_cli.evaluation.entities import count_entities, find_entities, mark_entities


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("", set()),
        ("O O", set()),
        ("B-PER I-PER O B-LOC", {("PER", 0, 1), ("LOC", 3, 3)}),
        ("B-PER B-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        ("B-PER I-LOC", {("PER", 0, 0), ("LOC", 1, 1)}),
        ("O I-PER I-PER", {("PER", 1, 2)}),
        ("I-PER I-LOC I-LOC", {("PER", 0, 0), ("LOC", 1, 2)}),
        ("B-PER I-PER E-PER I-PER", {("PER", 0, 2), ("PER", 3, 3)}),
        ("S-PER E-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        ("B-PER I-PER L-PER U-LOC", {("PER", 0, 2), ("LOC", 3, 3)}),
        ("B-X-Y I-X-Y", {("X-Y", 0, 1)}),
        ("B-PER [CLS] I-PER", {("PER", 0, 0), ("PER", 2, 2)}),
    ],
)
def test_entities_of_a_sentence(tags, expected):
    assert find_entities(tags.split()) == expected


@pytest.mark.parametrize(
    ("tags", "marked"),
    [(["O", "B-PER"], True), (["NOUN", "B-NP"], True), (["NOUN", "-LRB-", "O"], False), (["O"], False)],
)
def test_only_tags_with_a_place_mark_entities(tags, marked):
    assert mark_entities(tags) == marked


def test_an_entity_is_right_if_its_type_and_both_ends_are():
    labels = ["B-PER", "I-PER", "O", "B-LOC", "O"]
    predicted = ["B-PER", "I-PER", "O", "B-LOC", "I-LOC"]
    assert count_entities(predicted, labels, entities=True) == (1, 2, 2, 4, 5)
    assert count_entities(predicted, labels, entities=False) == (0, 0, 0, 4, 5)
