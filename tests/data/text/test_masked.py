"""Masked texts: every token is masked once, special ones never, and long texts keep all of theirs."""

import pytest
import torch
from helpers.models import tiny_tokenizer

from optin_cli.data.text.masked import Masking, cut_texts
from optin_cli.data.text.tokenize import cut_batches
from optin_cli.errors import CheckpointError, UsageError

TEXTS = ["a b c d e f g h i", "good film", "a", "[MASK] zzz", "bad [SEP] film c"]
"""The last but one has no token that can be masked: a special one, and an unknown one."""


@pytest.fixture(scope="module", params=["right", "left"])
def tokenizer(request):
    return tiny_tokenizer(padding_side=request.param)


def batches_of(tokenizer, texts=TEXTS, size=2, length=16):
    return cut_batches(cut_texts(texts, tokenizer, max_length=length)[0], tokenizer, batch_size=size)


@pytest.mark.parametrize("every", [1, 2, 4, 100])
def test_every_token_is_masked_once_among_others_that_are_not(tokenizer, every):
    masking, special = Masking.of(tokenizer, every), torch.tensor(tokenizer.all_special_ids)
    for batch in batches_of(tokenizer):
        seen = {row: torch.zeros(batch.inputs["input_ids"].shape[1], dtype=torch.long) for row in batch.rows}
        ids = dict(zip(batch.rows, batch.inputs["input_ids"], strict=True))
        for turn in masking.turns(batch):
            found = turn.batch.inputs["input_ids"]
            assert bool(turn.places.any(dim=1).all())
            for row, places, shown in zip(turn.batch.rows, turn.places, found, strict=True):
                free = int((~torch.isin(ids[row], special)).sum())
                assert int(places.sum()) <= -(-free // min(every, free))
                assert torch.equal(shown, ids[row].masked_fill(places, tokenizer.mask_token_id))
                seen[row] += places
            truth = torch.cat([ids[row][places] for row, places in zip(turn.batch.rows, turn.places, strict=True)])
            assert torch.equal(turn.answers, truth) and len(turn.owners) == len(truth)
        for row, times in seen.items():
            assert torch.equal(times, (~torch.isin(ids[row], special)).long())


def test_masks_for_calibration_follow_from_content(tokenizer):
    masking = Masking.of(tokenizer, 3)
    alone = {
        batch.keys[0]: masking.once(batch).inputs["input_ids"][0]
        for text in TEXTS
        for batch in batches_of(tokenizer, [text])
    }
    for batch in batches_of(tokenizer, TEXTS[::-1], size=5):
        masked = masking.once(batch).inputs["input_ids"]
        for key, row, mask in zip(batch.keys, masked, batch.token_mask, strict=True):
            assert torch.equal(row[mask], alone[key])
    assert sum(int((ids == tokenizer.mask_token_id).sum()) for ids in alone.values()) == 1 + 3 + 1 + 1 + 1


def test_long_texts_are_cut_into_rows_that_keep_every_token(tokenizer):
    whole = tokenizer(TEXTS[0])["input_ids"]
    rows, owners = cut_texts(["good film", TEXTS[0]], tokenizer, max_length=5)
    assert owners.tolist() == [0, 1, 1, 1]
    assert all(len(row) <= 5 for row in rows["input_ids"])
    assert [token for row in rows["input_ids"][1:] for token in row[1:-1]] == whole[1:-1]
    with pytest.raises(UsageError, match="2 are special"):
        cut_texts(["a"], tokenizer, max_length=2)


def test_a_tokenizer_without_a_mask_is_refused():
    tokenizer = tiny_tokenizer(mask_token=None)
    with pytest.raises(CheckpointError, match="no mask token") as caught:
        Masking.of(tokenizer, 7)
    assert "--as AutoModel" in caught.value.hint
