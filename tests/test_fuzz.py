"""Random damage: whatever a file holds, its reader returns what is right or raises a UserError."""

import contextlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.keys import known_keys
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import GrpoConfig
from simplear_rl.data.order import Piece
from simplear_rl.data.prompts import read_prompts
from simplear_rl.data.shards import TokenShards
from simplear_rl.errors import UserError
from simplear_rl.policy.vocabulary import read_encoder, read_layout

GRPO = CONFIGS / "shapes" / "grpo.yaml"
quick = settings(
    max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part, max_size=3),
    max_leaves=6,
)


def mutate(content: bytes, edits: list[tuple[int, int]]) -> bytes:
    """`content` with some bytes replaced; a place beyond the end cuts it there instead."""
    changed = bytearray(content)
    for place, value in edits:
        if value > 255:
            del changed[place % len(content) :]
        elif place % len(content) < len(changed):
            changed[place % len(content)] = value
    return bytes(changed)


edits = st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 258)), min_size=1, max_size=8)


@quick
@given(edits=edits)
def test_configuration_files_with_changed_bytes(tmp_path, edits):
    file = tmp_path / "c.yaml"
    file.write_bytes(mutate(GRPO.read_bytes(), edits))
    with contextlib.suppress(UserError):
        load_config(GrpoConfig, file)


@quick
@given(content=st.binary(max_size=60) | st.text(alphabet="ab:-[]{}&*!|>#\"'%@`,? \n\t0.~<", max_size=40))
def test_configuration_files_of_anything(tmp_path, content):
    file = tmp_path / "c.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with contextlib.suppress(UserError):
        load_config(GrpoConfig, file)


@quick
@given(key=st.sampled_from(known_keys(GrpoConfig)) | st.text(max_size=10), value=values, raw=st.text(max_size=12))
def test_overrides_of_anything(key, value, raw):
    for text in str(value), raw:
        with contextlib.suppress(UserError):
            load_config(GrpoConfig, GRPO, [f"{key}={text}"])


@pytest.mark.parametrize(
    "content", ["a: &a [*a]", "root: &a [*a]\nx: *a", "[" * 5000, "root: /r\nrun: &a [*a]", "when: 2001-99-99"]
)
def test_configuration_files_that_contain_themselves_or_nest_deeply(tmp_path, content):
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=r"c\.yaml"):
        load_config(GrpoConfig, file)


@quick
@given(content=st.binary(max_size=80) | st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass")))
def test_prompt_files_of_anything(tmp_path, encode, content):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with contextlib.suppress(UserError):
        prompts = read_prompts(file, encode)
        assert len(prompts) == len(content.rstrip().split(b"\n"))  # none is dropped
        assert all(len(encode(prompt)) <= 40 for prompt in prompts)


@pytest.fixture(scope="module")
def encode(policy):
    return read_encoder(policy, max_tokens=40)


def read_all(folder, layout):
    shards = TokenShards(folder, layout)
    total = int(shards.sizes.sum())
    rows = list(shards.rows(Piece(np.arange(len(shards.groups)), np.arange(total)), range(total)))
    for row in rows:
        assert row.caption.strip()
        assert row.codes.shape == (layout.tokens,)
        assert row.codes.max() < layout.codebook_size
    return rows


CAPTIONS = [f"a red circle and {i} more" for i in range(12)]


@pytest.mark.parametrize("options", [{}, {"compression": "none", "use_dictionary": False, "write_statistics": False}])
@quick
@given(edits=edits)
def test_shards_with_changed_bytes(tmp_path, policy, options, edits):
    file = tmp_path / "0.parquet"
    codes = np.random.default_rng(0).integers(0, 100, (12, 16)).tolist()
    table = pa.table({"caption": CAPTIONS, "codes": codes})
    parquet.write_table(table, file, row_group_size=5, **options)
    file.write_bytes(mutate(file.read_bytes(), edits))
    with contextlib.suppress(UserError):
        read_all(tmp_path, read_layout(policy))


code = st.none() | st.integers(-(2**31), 2**31) | st.integers(0, 99)


@quick
@given(
    captions=st.lists(st.none() | st.text(max_size=6), min_size=1, max_size=5),
    codes=st.lists(st.none() | st.lists(code, max_size=18) | st.just([7] * 16), min_size=5, max_size=5),
    short=st.lists(st.none() | st.text(max_size=4), min_size=5, max_size=5),
)
def test_shards_of_any_rows(tmp_path, policy, captions, codes, short):
    """What comes out is what was put in, or nothing at all."""
    number = len(captions)
    columns = {
        "caption": pa.array(captions, pa.string()),
        "codes": pa.array(codes[:number], pa.list_(pa.int64())),
        "short_caption": pa.array(short[:number], pa.string()),
    }
    parquet.write_table(pa.table(columns), tmp_path / "0.parquet", row_group_size=2)
    with contextlib.suppress(UserError):
        rows = read_all(tmp_path, read_layout(policy))
        assert [row.caption for row in rows] == captions
        assert [row.codes.tolist() for row in rows] == codes[:number]
        assert [row.short_caption for row in rows] == short[:number]
