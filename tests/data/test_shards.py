"""Bad shards: named before the first step where the footers show it, else when the row is read."""

import json
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.data import TokenizeConfig
from simplear_rl.config.load import load_config
from simplear_rl.data.order import Piece
from simplear_rl.data.shard_writer import ShardWriter
from simplear_rl.data.shards import TokenShards
from simplear_rl.errors import UserError
from simplear_rl.policy.vocabulary import read_layout

CAPTIONS = ["a red circle", "two cross", "a blue square", "a cross", "three circle", "a green circle"]
GOOD = {"caption": CAPTIONS, "codes": [[7] * 16] * 6}


def write(folder, columns, **options):
    parquet.write_table(pa.table(columns), folder / "00000.parquet", **options)


def read_all(shards):
    return list(shards.rows(Piece(np.arange(len(shards.groups)), np.arange(6)), range(6)))


@pytest.mark.parametrize("integer", [pa.uint16(), pa.int64()])
@pytest.mark.parametrize("make_list", [pa.list_, pa.large_list, lambda of: pa.list_(of, 16)])
def test_rows_are_what_was_written(tmp_path, policy, integer, make_list):
    codes = np.random.default_rng(0).integers(0, 100, (6, 16))
    columns = {"caption": CAPTIONS, "codes": pa.array(codes.tolist(), make_list(integer)), "id": list("abcdef")}
    write(tmp_path, columns, row_group_size=4)
    rows = read_all(TokenShards(tmp_path, read_layout(policy)))
    assert [row.caption for row in rows] == CAPTIONS
    assert [row.short_caption for row in rows] == [None] * 6
    assert np.array_equal([row.codes for row in rows], codes)
    assert rows[0].codes.dtype == np.uint16
    assert rows[5].place == f"{tmp_path}/00000.parquet: row 5"


BAD_ROWS = [
    ({"weight": [1.0, -0.5, 1.0, 1.0, 1.0, 1.0]}, "row 1: weight -0.5, expected a number of 0 or more"),
    ({"weight": [1.0, 1.0, None, 1.0, 1.0, 1.0]}, "row 2: weight None"),
    ({"codes": np.full((6, 16), 100, np.uint16)}, r"row 0: code 100, the policy expects 0 \.\.\. 99"),
    ({"codes": np.zeros((6, 9), np.uint16)}, "row 0: 9 codes, the policy expects 16"),
    ({"codes": [[0] * 16, [0] * 16, [0] * 3, *[[0] * 16] * 3]}, "row 2: 3 codes"),
    ({"codes": [*[[0] * 16] * 5, [0] * 15 + [-1]]}, "row 5: code -1"),
    ({"codes": [[0] * 16, [0] * 15 + [None], *[[0] * 16] * 4]}, "row 1: code null"),
    ({"codes": [None, *[[0] * 16] * 5]}, "row 0: 0 codes"),
    ({"caption": [*CAPTIONS[:2], "  ", *CAPTIONS[3:]]}, "row 2: empty caption"),
    ({"caption": [*CAPTIONS[:5], None]}, "row 5: empty caption"),
    ({"short_caption": [*CAPTIONS[:5], ""]}, "row 5: empty short_caption"),
]


@pytest.mark.parametrize(("change", "message"), BAD_ROWS)
@pytest.mark.parametrize("statistics", [True, False])
def test_bad_rows_are_named(tmp_path, policy, change, message, statistics):
    columns = GOOD | change
    columns["codes"] = list(columns["codes"])
    write(tmp_path, columns, row_group_size=4, write_statistics=statistics)
    with pytest.raises(UserError, match=f"00000.parquet: {message}"):
        read_all(TokenShards(tmp_path, read_layout(policy)))


@pytest.mark.parametrize(("change", "message"), BAD_ROWS)
def test_footers_give_bad_rows_away_before_the_first_step(tmp_path, policy, change, message):
    columns = GOOD | change
    columns["codes"] = list(columns["codes"])
    write(tmp_path, columns, row_group_size=4)
    with pytest.raises(UserError, match=f"00000.parquet: {message}"):
        TokenShards(tmp_path, read_layout(policy))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"caption": CAPTIONS, "codes": ["x"] * 6}, "column `codes` must be a list of integers, found string"),
        ({"caption": CAPTIONS, "codes": [[0.5] * 16] * 6}, "column `codes` must be a list of integers, found list<"),
        ({"caption": [1] * 6, "codes": [[0] * 16] * 6}, "column `caption` must be a string, found int64"),
        ({"text": CAPTIONS, "codes": [[0] * 16] * 6}, r"column `caption` must be a string, found \['text', 'codes'\]"),
        (GOOD | {"short_caption": [1] * 6}, "column `short_caption` must be a string, found int64"),
    ],
)
def test_wrong_columns_are_named(tmp_path, policy, columns, message):
    write(tmp_path, columns)
    with pytest.raises(UserError, match=f"00000.parquet: {message}"):
        TokenShards(tmp_path, read_layout(policy))


@pytest.mark.parametrize("twice", ["caption", "codes", "weight"])
def test_two_columns_of_a_name_are_refused(tmp_path, policy, twice):
    columns = {"weight": [1.0] * 6} | GOOD
    table = pa.table([*columns.values(), columns[twice]], names=[*columns, twice])
    parquet.write_table(table, tmp_path / "00000.parquet")
    with pytest.raises(UserError, match=f"00000.parquet: two columns are called {twice}, expected one"):
        TokenShards(tmp_path, read_layout(policy))


@pytest.mark.parametrize("about", ['{"tokenizer": ["x"]}', '{"tokenizer": 3}', "[]", "{"])
def test_metadata_of_another_form_are_refused(tmp_path, policy, about):
    table = pa.table(GOOD).replace_schema_metadata({"simplear_rl": about})
    parquet.write_table(table, tmp_path / "00000.parquet")
    with pytest.raises(UserError, match="00000.parquet: its metadata `simplear_rl` are not what `tokenize` writes"):
        TokenShards(tmp_path, read_layout(policy))


def test_damaged_empty_and_missing_shards_are_named(tmp_path, policy):
    layout = read_layout(policy)
    with pytest.raises(UserError, match="no Parquet shards"):
        TokenShards(tmp_path, layout)
    write(tmp_path, {"caption": pa.array([], pa.string()), "codes": pa.array([], pa.list_(pa.uint16()))})
    with pytest.raises(UserError, match="no rows"):
        TokenShards(tmp_path, layout)
    (tmp_path / "00000.parquet").write_bytes(b"PAR1 and then nothing of the kind")
    with pytest.raises(UserError, match="00000.parquet: not a readable shard"):
        TokenShards(tmp_path, layout)


def test_shards_that_are_not_finished_are_refused(tmp_path, policy):
    write(tmp_path, GOOD)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="`tokenize` has not finished these shards: give its command again"):
        TokenShards(tmp_path, read_layout(policy))
    (tmp_path / "rejected.jsonl").touch()
    TokenShards(tmp_path, read_layout(policy))


def test_a_row_group_that_cannot_be_decoded_is_named(tmp_path, policy):
    file = tmp_path / "00000.parquet"
    write(tmp_path, GOOD, row_group_size=4, compression="zstd")
    shards = TokenShards(tmp_path, read_layout(policy))
    content = bytearray(file.read_bytes())
    content[4:120] = bytes(116)
    file.write_bytes(content)
    with pytest.raises(UserError, match="00000.parquet: rows 0 to 3 cannot be read"):
        read_all(shards)


def make_tokenizer(folder, content="weights"):
    """The files of a visual tokenizer with 100 codes of 16 pixels; no one runs them."""
    folder.mkdir()
    for name in "encoder.jit", "decoder.jit":
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("data", content)
    (folder / "config.json").write_text(json.dumps({"levels": [10, 10], "patch": 16}))
    return folder


@pytest.mark.parametrize("content", ["", '{"size": 6', "[]", "\0\0\0"])
def test_a_manifest_that_a_crash_has_damaged(tmp_path, content):
    values = [f"root={tmp_path}", f"tokenizer={make_tokenizer(tmp_path / 'tokenizer')}", f"output={tmp_path / 'out'}"]
    config = load_config(TokenizeConfig, CONFIGS / "shapes" / "tokenize.yaml", values)
    file = config.output / "manifest.json"
    ShardWriter(config, []).begin()
    whole = file.read_text()
    file.write_text(content)
    shards = ShardWriter(config, [])
    assert not shards.begun
    shards.begin()
    assert file.read_text() == whole
    write(config.output, GOOD)
    ShardWriter(config, [])
    file.write_text(content)
    with pytest.raises(UserError, match=f"{file}: .*; choose another output"):
        ShardWriter(config, [])
