import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from simplear_rl.config import TokenDataConfig
from simplear_rl.data.batches import TokenDataset
from simplear_rl.errors import UserError
from simplear_rl.policy.vocabulary import read_encoder, read_layout

CAPTIONS = ["a red circle", "two cross", "a blue square", "a cross", "three circle", "a green circle"]


def write(folder, captions=CAPTIONS, codes=None, names=("caption", "codes")):
    if codes is None:
        codes = np.random.default_rng(0).integers(0, 100, (len(captions), 16)).astype(np.uint16)
    table = pa.table(dict(zip(names, (captions, list(codes)), strict=True)))
    parquet.write_table(table, folder / "00000.parquet")
    return codes


def dataset(folder, policy, drop_caption=0.0):
    config = TokenDataConfig(shards=folder, batch_size=4, micro_batch=2, drop_caption=drop_caption)
    return TokenDataset(config, read_encoder(policy), read_layout(policy), seed=0)


def test_sequences_are_prompt_and_visual_ids(tmp_path, policy):
    codes = write(tmp_path)
    encode, offset = read_encoder(policy), read_layout(policy).visual_offset
    data = dataset(tmp_path, policy)
    expected = {
        tuple(np.concatenate([encode(c), k.astype(int) + offset])) for c, k in zip(CAPTIONS, codes, strict=True)
    }
    drawn = [tuple(row) for step in (1, 2, 3) for row in data.batch(step).ids]
    assert set(drawn[:6]) == set(drawn[6:]) == expected


def test_dropped_captions_leave_the_null_prompt(tmp_path, policy):
    write(tmp_path)
    encode = read_encoder(policy)
    assert all(list(row[:2]) == encode.null for row in dataset(tmp_path, policy, drop_caption=1.0).batch(1).ids)
    rows = [row for step in range(1, 101) for row in dataset(tmp_path, policy, drop_caption=0.3).batch(step).ids]
    assert np.mean([len(row) == 18 for row in rows]) == pytest.approx(0.3, abs=0.08)


def test_a_batch_is_a_function_of_its_step(tmp_path, policy):
    write(tmp_path)
    first, second = dataset(tmp_path, policy, 0.5), dataset(tmp_path, policy, 0.5)
    first.batch(1)
    assert all(np.array_equal(a, b) for a, b in zip(first.batch(7).ids, second.batch(7).ids, strict=True))


def test_padding_is_never_a_target(tmp_path, policy):
    write(tmp_path)
    batch = dataset(tmp_path, policy).batch(1)
    ids, labels = batch.padded(np.arange(4), "cpu")
    assert ids.shape == labels.shape == (4, max(map(len, batch.ids)))
    assert int((labels[:, 1:] != -100).sum()) == batch.target_tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.full((6, 16), 100, np.uint16)}, r"row 0: code 100, the policy expects 0 \.\.\. 99"),
        ({"codes": np.zeros((6, 9), np.uint16)}, "row 0: 9 codes, the policy expects 16"),
        ({"codes": [[0] * 16, [0] * 16, [0] * 3, *[[0] * 16] * 3]}, "row 2: 3 codes"),
        ({"codes": [[0] * 16, [0] * 15 + [-1], *[[0] * 16] * 4]}, "row 1: code -1"),
        ({"codes": [[0] * 16, [0] * 15 + [None], *[[0] * 16] * 4]}, "row 1: code -1"),
        ({"codes": [None, *[[0] * 16] * 5]}, "row 0: 0 codes"),
        ({"codes": ["x"] * 6}, "not a readable shard"),
        ({"names": ("text", "codes")}, "columns `caption` and `codes`"),
        ({"captions": [*CAPTIONS[:2], "  ", *CAPTIONS[3:]]}, "row 2: empty caption"),
    ],
)
def test_bad_shards_are_named(tmp_path, policy, change, message):
    write(tmp_path, **change)
    with pytest.raises(UserError, match=message) as error:
        dataset(tmp_path, policy)
    assert "00000.parquet" in str(error.value)


def test_damaged_and_missing_shards_are_named(tmp_path, policy):
    with pytest.raises(UserError, match="no Parquet shards"):
        dataset(tmp_path, policy)
    (tmp_path / "00000.parquet").write_bytes(b"PAR1 and then nothing of the kind")
    with pytest.raises(UserError, match="00000.parquet: not a readable shard"):
        dataset(tmp_path, policy)
