import threading

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from simplear_rl.config.data import TokenDataConfig
from simplear_rl.data.batches import Prefetcher, TokenBatch, TokenDataset
from simplear_rl.errors import UserError
from simplear_rl.policy.vocabulary import read_encoder, read_layout

CAPTIONS = ["a red circle", "two cross", "a blue square", "a cross", "three circle", "a green circle"]
TOKENS = 16


def write(folder, captions=CAPTIONS, short_captions=None, codes=None, row_group_size=4):
    """A shard in which the first code of row i is i, unless `codes` are given."""
    folder.mkdir(exist_ok=True)
    if codes is None:
        codes = np.random.default_rng(0).integers(0, 100, (len(captions), TOKENS)).astype(np.uint16)
        codes[:, 0] = np.arange(len(captions))
    columns = {"id": [str(i) for i in range(len(captions))], "caption": captions, "codes": list(codes)}
    if short_captions:
        columns["short_caption"] = pa.array(short_captions, pa.string())
    parquet.write_table(pa.table(columns), folder / "00000.parquet", row_group_size=row_group_size)
    return codes


def dataset(policy, *folders, rank=0, ranks=1, weights=(1.0, 1.0, 1.0), **values):
    sources = [{"shards": folder, "weight": weight} for folder, weight in zip(folders, weights, strict=False)]
    settings = {"batch_size": 4, "micro_batch": 2, "drop_caption": 0.0} | values
    config = TokenDataConfig.model_validate({"sources": sources} | settings)
    return TokenDataset(config, read_encoder(policy), read_layout(policy), 0, rank, ranks)


def drawn(data, steps):
    return [tuple(row) for step in steps for row in data.batch(step).ids]


def test_sequences_are_prompt_and_visual_ids(tmp_path, policy):
    codes = write(tmp_path)
    encode, offset = read_encoder(policy), read_layout(policy).visual_offset
    rows = drawn(dataset(policy, tmp_path), (1, 2, 3))
    expected = {
        tuple(np.concatenate([encode(c), k.astype(int) + offset])) for c, k in zip(CAPTIONS, codes, strict=True)
    }
    assert set(rows[:6]) == set(rows[6:]) == expected


def test_dropped_captions_leave_the_null_prompt(tmp_path, policy):
    write(tmp_path)
    encode = read_encoder(policy)
    assert all(list(row[:2]) == encode.null for row in dataset(policy, tmp_path, drop_caption=1.0).batch(1).ids)
    rows = drawn(dataset(policy, tmp_path, drop_caption=0.3), range(1, 101))
    assert np.mean([len(row) == 18 for row in rows]) == pytest.approx(0.3, abs=0.08)


def test_short_captions_are_drawn_where_there_are_any(tmp_path, policy):
    short = ["circle", None, "square", None, "three", "green"]
    write(tmp_path, short_captions=short)
    encode = read_encoder(policy)

    def taken(**values):
        data = dataset(policy, tmp_path, **values)
        return [(row[-TOKENS] - data.layout.visual_offset, row[:-TOKENS]) for row in drawn(data, range(1, 301))]

    long_ids = [tuple(encode(caption)) for caption in CAPTIONS]
    short_ids = [tuple(encode(s or caption)) for s, caption in zip(short, CAPTIONS, strict=True)]
    assert all(prompt == long_ids[i] for i, prompt in taken(short_caption=0.0))
    assert all(prompt == short_ids[i] for i, prompt in taken(short_caption=1.0))
    both = [prompt == short_ids[i] for i, prompt in taken() if short[i]]
    assert np.mean(both) == pytest.approx(0.5, abs=0.06)


def test_weights_of_images_and_factors_of_sources(tmp_path, policy):
    """Reward-weighted likelihood: own samples with a weight each, beside pretraining data with a factor."""
    own = [0.0, 0.5, 1.0, 0.25, 2.0, 4.0]
    for name, weights in ("own", own), ("other", None):
        write(tmp_path / name)
        if weights:
            (file,) = (tmp_path / name).glob("*.parquet")
            parquet.write_table(parquet.read_table(file).append_column("weight", pa.array(weights)), file)
    assert dataset(policy, tmp_path / "other").batch(1).weights is None
    sources = [{"shards": tmp_path / "own"}, {"shards": tmp_path / "other", "factor": 0.125}]
    config = TokenDataConfig.model_validate(
        {"sources": sources, "batch_size": 12, "micro_batch": 2, "drop_caption": 0.0}
    )
    data = TokenDataset(config, read_encoder(policy), read_layout(policy), 0)
    batch = data.batch(1)
    first = [int(row[-TOKENS] - data.layout.visual_offset) for row in batch.ids]
    assert batch.weights.dtype == np.float32
    assert batch.weights.tolist() == [own[code] for code in first[:6]] + [0.125] * 6


def test_a_batch_is_a_function_of_its_step(tmp_path, policy):
    write(tmp_path, short_captions=["circle"] * 6)
    first, second = (dataset(policy, tmp_path, drop_caption=0.5, shuffle_rows=2) for _ in range(2))
    drawn(first, range(1, 7))
    assert drawn(first, [7]) == drawn(second, [7])


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_batch_that_one_rank_has(tmp_path, policy, ranks):
    write(tmp_path / "a", short_captions=["circle"] * 6)
    write(tmp_path / "b", ["two cross"] * 5)
    settings = {"weights": (3.0, 1.0), "batch_size": 8, "drop_caption": 0.3, "shuffle_rows": 4}
    alone = dataset(policy, tmp_path / "a", tmp_path / "b", **settings)
    parts = [dataset(policy, tmp_path / "a", tmp_path / "b", rank=r, ranks=ranks, **settings) for r in range(ranks)]
    for step in range(1, 8):
        whole = drawn(alone, [step])
        for rank, part in enumerate(parts):
            assert drawn(part, [step]) == whole[rank::ranks]


def test_a_rank_decodes_only_row_groups_that_hold_rows_of_its(tmp_path, policy):
    write(tmp_path, ["a cross"] * 64, row_group_size=1)
    parts = [dataset(policy, tmp_path, rank=rank, ranks=4, batch_size=16) for rank in range(4)]
    for part in parts:
        part.batch(1)
    assert [len(part.sources[0].loaded) for part in parts] == [4] * 4


def test_sources_are_mixed_by_weight_each_with_epochs_of_its_own(tmp_path, policy):
    write(tmp_path / "a", ["a cross"] * 30)
    write(tmp_path / "b", ["two cross"] * 10)
    data = dataset(policy, tmp_path / "a", tmp_path / "b", weights=(1.0, 2.0), batch_size=6)
    b_prompt = read_encoder(policy)("two cross")
    rows = drawn(data, range(1, 16))  # 90 images: 30 of a, 60 of b
    images = {"a": [], "b": []}
    for row in rows:
        images["b" if list(row[:-TOKENS]) == b_prompt else "a"].append(row[-TOKENS] - data.layout.visual_offset)
    assert sorted(images["a"]) == list(range(30))
    assert sorted(images["b"]) == sorted([*range(10)] * 6)


def test_long_captions_are_refused_or_cut_and_counted(tmp_path, policy):
    write(tmp_path, ["a cross", "two red circle", "a red circle and two blue square", "a circle"])
    room = len(["<|t2i|>", "A", "photo", "of", "a", "red", "circle", "<|soi|>"])
    with pytest.raises(UserError, match=r"00000.parquet: row 2: the caption has 10 tokens .* room for 6"):
        dataset(policy, tmp_path, max_prompt_tokens=room).batch(1)
    data = dataset(policy, tmp_path, max_prompt_tokens=room, long_caption="truncate")
    batch = data.batch(1)
    assert batch.truncated == 1
    assert max(map(len, batch.ids)) == room + TOKENS
    assert tuple(read_encoder(policy)("a red circle")) in {tuple(row[:-TOKENS]) for row in batch.ids}
    assert dataset(policy, tmp_path).batch(1).truncated == 0


def test_padding_is_never_a_target(tmp_path, policy):
    write(tmp_path)
    batch = dataset(policy, tmp_path).batch(1)
    ids, labels = batch.padded(np.arange(4), "cpu")
    assert ids.shape == labels.shape == (4, max(map(len, batch.ids)))
    assert int((labels[:, 1:] != -100).sum()) == batch.target_lengths.sum()


def test_micro_batches_hold_rows_of_like_lengths_and_waste_little():
    lengths = np.random.default_rng(0).integers(5, 151, 256) + 64
    batch = TokenBatch([np.zeros(length, np.int64) for length in lengths])
    passes = batch.micro_batches(16)
    assert sorted(np.concatenate(passes)) == list(range(256))
    assert {len(rows) for rows in passes} == {16}

    def padding(passes):
        area = sum(len(rows) * lengths[rows].max() for rows in passes)
        return 1 - lengths.sum() / area

    assert padding(np.split(np.arange(256), 16)) > 0.25
    assert padding(passes) < 0.04


def test_prefetched_batches_are_the_batches_and_come_early():
    made, second_made = [], threading.Event()

    def batch(step):
        made.append(step)
        if step == 2:
            second_made.set()
        if step == 3:
            raise UserError("row 7")
        return TokenBatch([np.array([step])])

    prefetched = Prefetcher(batch)
    assert prefetched(1).ids[0][0] == 1
    assert second_made.wait(timeout=10)  # before it is asked for
    assert prefetched(2).ids[0][0] == 2
    with pytest.raises(UserError, match="row 7"):
        prefetched(3)
    assert prefetched(8).ids[0][0] == 8
    assert made[:3] == [1, 2, 3]


def test_prefetching_a_real_data_set_changes_nothing(tmp_path, policy):
    write(tmp_path)
    prefetched, plain = (dataset(policy, tmp_path, drop_caption=0.3, shuffle_rows=2) for _ in range(2))
    batch = Prefetcher(prefetched.batch)
    for step in range(5, 20):
        assert [tuple(row) for row in batch(step).ids] == drawn(plain, [step])
