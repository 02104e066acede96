"""The record of a trimmed vocabulary: what went, and the proof that texts are read as before."""

from typing import ClassVar, Literal

from pydantic import Field

from optin_cli.artifacts.base import Artifact, Frozen, Totals


class VocabularyProof(Frozen):
    """What was compared with the original.

    texts, trials: of the data, and random ones, that tokenize as before. rows: texts whose outputs were compared, of
    the folder loaded by `loader` in a fresh process. difference: the largest, absolute.
    """

    texts: int
    trials: int
    rows: int
    loader: str
    difference: float
    tolerance: float


class Vocabulary(Artifact):
    """`optin trim`: record of a folder whose model knows fewer tokens.

    before, after: costs of the whole model. tokens_before, tokens_after: rows of the embedding.
    """

    kind: ClassVar[str] = "vocabulary"
    needs: ClassVar[tuple[str, ...]] = ("checkpoint",)
    schema_: Literal["optin.vocabulary/1"] = Field(default="optin.vocabulary/1", alias="schema")
    model_class: str
    tokens_before: int
    tokens_after: int
    before: Totals
    after: Totals
    proof: VocabularyProof
