"""Pairs of images as data sets keep them, and what DPO reads of them."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.data import PairDataConfig, TokenizeConfig
from simplear_rl.config.load import load_config
from simplear_rl.data.batches import PairDataset
from simplear_rl.data.columns import Columns
from simplear_rl.data.images import to_square
from simplear_rl.data.listing import find_files
from simplear_rl.data.pair_forms import LEFT_OUT
from simplear_rl.data.reasons import Reasons
from simplear_rl.data.shard_writer import ShardWriter
from simplear_rl.data.sources import divide, most_samples, read_batches
from simplear_rl.data.trial import try_first
from simplear_rl.errors import UserError
from simplear_rl.policy.vocabulary import read_encoder, read_layout
from simplear_rl.tokenizers.fsq import FsqTokenizer, export
from tests.pictures import encoded, pickapic, picture

IMAGES = [encoded(picture(number, 40 + number, 50), "JPEG") for number in range(4)]
SQUARES = [to_square(image, 32) for image in IMAGES]


def read(folder, rows=3, **names):
    """Numbers of chosen and rejected image by key with the caption, and reasons by key, after the trial."""
    columns = Columns(**{"pairs": "drop_ties"} | names)
    parts = divide(find_files(folder, "**/*", columns=columns), rows, columns)
    try_first(parts, 32, columns, None)
    found = [row for part in parts for row in read_batches(part, 32, 2, columns)]
    samples = [sample for row in found for sample in json.loads(row["samples"])]
    pixels = [image for row in found for image in row["images"]]
    good = {
        sample["id"].rpartition(":")[2]: (sample["caption"], *map(number_of, pair))
        for sample, pair in zip(samples, pixels, strict=True)
    }
    bad = {entry["key"]: entry["reason"] for row in found for entry in json.loads(row["rejected"])}
    assert len(good) + len(bad) <= most_samples(parts)
    return good, bad


def number_of(image):
    return next(number for number, square in enumerate(SQUARES) if np.array_equal(image, square))


def json_file(folder, *entries, name="train.json"):
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(IMAGES):
        (folder / f"{number}.jpg").write_bytes(image)
    text = json.dumps(entries) if name.endswith(".json") else "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / name).write_text(text)


def test_pickapic(tmp_path):
    rows = [
        ("a cat", IMAGES[0], IMAGES[1], 1.0, True),
        ("a dog", IMAGES[2], IMAGES[3], 0.0, True),
        ("a tie", IMAGES[0], IMAGES[2], 0.5, True),
        ("nobody looked", IMAGES[0], IMAGES[1], 1.0, False),
        ("half an image", IMAGES[0], IMAGES[1][:300], 1.0, True),
        ("no image", None, IMAGES[1], 1.0, True),
        (" ", IMAGES[0], IMAGES[1], 1.0, True),
        ("no number", IMAGES[0], IMAGES[1], None, True),
        ("nan", IMAGES[0], IMAGES[1], float("nan"), True),
    ]
    pickapic(tmp_path / "x.parquet", rows)
    good, bad = read(tmp_path)
    assert good == {"0": ("a cat", 0, 1), "1": ("a dog", 3, 2)}
    assert bad.pop("4").startswith("unreadable image: ")
    assert bad == {
        "2": "a tie",
        "3": "no label",
        "5": "no image bytes",
        "6": "empty caption",
        "7": "label_0 and label_1: expected two numbers, found None and None",
        "8": "label_0 and label_1: expected two numbers, found nan and nan",
    }
    reasons = Reasons(bad.values())
    assert reasons.bad == 4 and reasons.counts.total() == 6 and set(LEFT_OUT) == {"a tie", "no label"}


def test_ties_are_kept_in_an_order_of_their_own(tmp_path):
    rows = [("a tie", IMAGES[0], IMAGES[1], 0.5, True)] * 40
    pickapic(tmp_path / "x.parquet", rows)
    orders = []
    for seed in 0, 0, 1:
        good, bad = read(tmp_path, rows=7, pairs="keep_ties", seed=seed)
        assert len(good) == 40 and not bad
        orders.append([pair[1:] for pair in good.values()])
    assert orders[0] == orders[1] != orders[2]
    assert 10 < sum(pair == (0, 1) for pair in orders[0]) < 30


PAIR = {"prompt": "a cat"}
FORMS = [
    ("train.jsonl", {"chosen": "1.jpg", "rejected": "0.jpg"}, (1, 0)),
    ("train.json", {"chosen": "1.jpg", "rejected": "0.jpg"}, (1, 0)),
    ("train.json", {"path1": "2.jpg", "path2": "0.jpg", "confidence": 0.9}, (2, 0)),
    ("train.json", {"path1": "2.jpg", "path2": "0.jpg", "choice_dist": [3, 9]}, (0, 2)),
    ("train.json", {"path1": "2.jpg", "path2": "0.jpg", "choice_dist": [4, 4]}, "a tie"),
    ("train.json", {"image_path": ["2.jpg", "3.jpg"], "human_preference": [0, 1]}, (3, 2)),
    ("train.json", {"image_path": ["2.jpg", "3.jpg", "0.jpg"], "human_preference": [0, 1]}, "image_path: expected a l"),
    ("train.json", {"chosen": "1.jpg", "rejected": "http://x.org/1.jpg"}, "http://x.org/1.jpg: an address"),
    ("train.json", {"chosen": "1.jpg", "rejected": "9.jpg"}, "9.jpg: No such file"),
]


@pytest.mark.parametrize(("name", "entry", "expected"), FORMS)
def test_json_forms(name, entry, expected, tmp_path):
    good_one = {"prompt": "first", "chosen": "0.jpg", "rejected": "1.jpg"}
    json_file(tmp_path, good_one, PAIR | entry, name=name)
    good, bad = read(tmp_path)
    assert good.pop("1") == ("first", 0, 1)
    if isinstance(expected, str):
        assert bad.keys() == {"2"} and bad["2"].startswith(expected) and not good
    else:
        assert good == {"2": ("a cat", *expected)} and not bad


def test_rankings_make_all_pairs_of_a_prompt(tmp_path):
    """As ImageRewardDB has it: an entry for each image, whose path begins at the data set's root."""
    entries = [
        {"image_path": f"images/train/{i}.jpg", "prompt_id": prompt, "prompt": prompt, "rank": rank}
        for i, (prompt, rank) in enumerate([("a cat", 2), ("a dog", 1), ("a cat", 1), ("a cat", 2)])
    ]
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    json_file(folder, *entries)
    good, bad = read(tmp_path, rows=1, image_folder=tmp_path)
    assert good == {"1-3": ("a cat", 2, 0), "3-4": ("a cat", 2, 3)}
    assert bad == {"1-4": "a tie"}


def test_a_damaged_ranking_cannot_be_read(tmp_path):
    entry = {"image_path": "0.jpg", "prompt_id": 1, "prompt": "a cat", "rank": 1}
    json_file(tmp_path, entry, entry)
    file = tmp_path / "train.json"
    file.write_text(file.read_text()[:-9])
    columns = Columns(pairs="drop_ties")
    (part,) = parts = divide(find_files(tmp_path, "**/*", columns=columns), 3, columns)
    (row,) = read_batches(part, 32, 2, columns)
    assert row["unreadable"].startswith("the file cannot be read: damaged JSON array, element 2, byte ")
    assert row["rejected"] == "[]" and most_samples(parts) == 1


def test_what_is_no_pair_is_refused(tmp_path):
    json_file(tmp_path / "a", {"image": "0.jpg", "caption": "a cat"}, name="x.jsonl")
    with pytest.raises(UserError, match=r"expected the columns chosen, rejected; jpg_0, .*; found image, caption"):
        read(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.jpg").write_bytes(IMAGES[0])
    (tmp_path / "b" / "0.txt").write_text("a cat")
    with pytest.raises(UserError, match="hold single images; pairs are read from JSON lines"):
        read(tmp_path / "b")
    parquet.write_table(pa.table({"caption": ["a cat"], "image": [IMAGES[0]]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="expected the columns chosen"):
        read(tmp_path / "c.parquet")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Shards of 12 pairs, written as `tokenize` does; the first code of row i is i, that of its other image 50 + i."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "tokenizer").mkdir()
    export(FsqTokenizer((5, 5, 4), channels=16), folder / "tokenizer")
    json_file(folder / "in", *({"prompt": "a red circle", "chosen": "0.jpg", "rejected": "1.jpg"} for _ in range(12)))
    values = [f"{key}={folder / name}" for key, name in (("root", "."), ("input", "in"), ("output", "out"))]
    values += [f"tokenizer={folder / 'tokenizer'}", "size=32", "world=null", "pairs=drop_ties", "shard_size=5"]
    config = load_config(TokenizeConfig, CONFIGS / "shapes" / "tokenize.yaml", values)
    columns = Columns.of(config)
    writer = ShardWriter(config, divide(find_files(config.input, config.files, columns=columns), 5, columns))
    writer.begin()
    first = 0
    for part in writer.missing():
        for row in read_batches(part, 32, 5, columns):
            codes = np.zeros((len(row["images"]), 2, 16), np.uint16)
            codes[:, :, 0] = np.arange(first, first + len(codes))[:, None] + [0, 50]
            first += len(codes)
            writer.add(row | {"codes": codes})
    assert writer.finish() == (12, [])
    return folder / "out"


def dataset(policy, folder, **values):
    config = PairDataConfig.model_validate({"sources": [{"shards": folder}], "batch_size": 4} | values)
    return PairDataset(config, read_encoder(policy), read_layout(policy), 0)


def test_every_pair_comes_once_an_epoch_the_chosen_image_first(shards, policy):
    pairs = [pair for step in (1, 2, 3) for pair in dataset(policy, shards).batch(step)[0]]
    assert sorted(int(pair.codes[0, 0]) for pair in pairs) == list(range(12))
    for pair in pairs:
        assert pair.codes.shape == (2, 16) and pair.codes[1, 0] == pair.codes[0, 0] + 50
        assert pair.prompt_ids == read_encoder(policy)("a red circle") and pair.unconditional_ids is None
    again = dataset(policy, shards).batch(2)[0]
    assert [pair.codes.tolist() for pair in again] == [pair.codes.tolist() for pair in pairs[4:8]]


def test_captions_are_dropped_and_guided_pairs_have_both_contexts(shards, policy):
    null = read_encoder(policy).null
    assert all(pair.prompt_ids == null for pair in dataset(policy, shards, drop_caption=1.0).batch(1)[0])
    for pair in dataset(policy, shards, guidance_scale=2.5).batch(1)[0]:
        assert pair.unconditional_ids == null and pair.sampling.guidance_scale == 2.5


def test_weights_of_a_loss_that_has_none_are_refused(shards, policy, tmp_path):
    with pytest.raises(ValueError, match="DPO has no `factor` of the loss"):
        dataset(policy, shards, sources=[{"shards": shards, "factor": 0}])
    table = parquet.read_table(next(shards.glob("*.parquet")))
    parquet.write_table(table.append_column("weight", pa.array([1.0] * len(table))), tmp_path / "0.parquet")
    with pytest.raises(UserError, match="0.parquet: column `weight`: the loss of pairs has no weights"):
        dataset(policy, tmp_path)


def test_bad_rows_are_named(shards, policy, tmp_path):
    (file, *_) = sorted(shards.glob("*.parquet"))
    table = parquet.read_table(file)
    codes = table["rejected"].to_pylist()
    codes[3] = codes[3][:9]
    parquet.write_table(table.set_column(3, "rejected", pa.array(codes, pa.list_(pa.uint16()))), tmp_path / "0.parquet")
    with pytest.raises(UserError, match=r"0\.parquet: row 3: 9 codes, the policy expects 16"):
        dataset(policy, tmp_path)
    parquet.write_table(table.drop_columns(["rejected"]), tmp_path / "0.parquet")
    with pytest.raises(UserError, match="column `rejected` must be a list of integers"):
        dataset(policy, tmp_path)
