"""Entities in tagged words, as CoNLL's evaluation script (conlleval) and, after it, seqeval tell them.

A tag is O, or a letter for the place in an entity and the entity's type, such as B-PER. An entity begins at B and S (or
U); at I, E or L where none of that type goes on; and ends where another begins, or after E, L, S or U.
"""

from collections.abc import Collection, Sequence

Entity = tuple[str, int, int]
"""Type, first word and last word."""
BEGIN, GO_ON, ENDS = frozenset("BSU"), frozenset("IEL"), frozenset("ESLU")


def mark_entities(tags: Collection[str]) -> bool:
    """Whether any of these tags is one of entities; others then count as O."""
    return any(_place(tag) for tag in tags)


def find_entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of one sentence's tags."""
    found: set[Entity] = set()
    kind, first, is_open = "", 0, False
    for number, tag in enumerate([*tags, ""]):
        place, this = _place(tag), tag.partition("-")[2]
        goes_on = is_open and place in GO_ON and this == kind
        if is_open and not goes_on:
            found.add((kind, first, number - 1))
        if not goes_on:
            kind, first = this, number
        is_open = place != ""
        if place in ENDS:
            found.add((kind, first, number))
            is_open = False
    return found


def count_entities(predicted: Sequence[str], labels: Sequence[str], *, entities: bool) -> tuple[int, ...]:
    """What the metrics need of a sentence.

    Right entities, predicted ones, those that the labels mark, words with the right tag, and words. entities: whether
    there are any; their counts are 0 otherwise.
    """
    mine, theirs = (find_entities(tags) if entities else set() for tags in (predicted, labels))
    right = sum(a == b for a, b in zip(predicted, labels, strict=True))
    return len(mine & theirs), len(mine), len(theirs), right, len(labels)


def _place(tag: str) -> str:
    """The place in an entity that a tag names, "" for none."""
    place, dash, _ = tag.partition("-")
    return place if dash and place in BEGIN | GO_ON else ""
