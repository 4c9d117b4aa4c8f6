"""Your own images: images and captions become token shards for pretraining and SFT.

Reads JSON lines, JSON arrays, WebDataset tars, Parquet files or images with texts beside them, from a folder or a data
set of the Hugging Face Hub. What is found and what is passed over is listed first. The shorter side of an image is
resized to `size`, the centre is cut out, and the visual tokenizer's actors encode it. Bad samples are listed in
rejected.jsonl. A run that was stopped continues with the same command.
"""

from simplear_rl.cli import read_command_line
from simplear_rl.config.data import TokenizeConfig

EXAMPLES = """  python -m simplear_rl.tokenize input=pictures output=tokens
  python -m simplear_rl.tokenize input=pictures output=tokens size=512 \\
      actors.count=8 actors.gpus=1 tokenizer=nvidia/Cosmos-1.0-Tokenizer-DV8x16x16
  python -m simplear_rl.tokenize input=owner/dataset files='data/train-*.parquet' output=tokens \\
      max_rejected=0.01"""

if __name__ == "__main__":  # --help and mistakes are answered before the slow imports below
    command_line = read_command_line(TokenizeConfig, "tokenize", EXAMPLES)

from actors.encoding import encode, too_many_rejected
from simplear_rl.data.columns import Columns
from simplear_rl.data.listing import find_files
from simplear_rl.data.reasons import Reasons
from simplear_rl.data.shard_writer import ShardWriter
from simplear_rl.data.sources import divide
from simplear_rl.data.trial import try_first
from simplear_rl.files import require_writable, resolve
from simplear_rl.inputs import require
from simplear_rl.run.lock import locked
from simplear_rl.tokenizers.cosmos import CosmosTokenizer


@locked("output")
def tokenize(config: TokenizeConfig) -> None:
    """Make the shards that are missing, then rejected.jsonl."""
    require(config, config.tokenizer, config.input)
    CosmosTokenizer(config.tokenizer)  # what is wrong with it shows before anything starts
    # On the Hub `*` stands for folders too, but `**/` for one at least.
    source = resolve(config.input, [config.files, config.files.replace("**/", "")], "dataset")
    require_writable(config.output, "output")
    columns = Columns.of(config)
    listing = find_files(source, config.files, config.output, columns)
    parts = divide(listing, config.shard_size, columns)
    print(listing, flush=True)
    shards = ShardWriter(config, parts)
    if not shards.begun:
        print("\n".join(try_first(parts, config.size, columns, config.min_size)), flush=True)
        shards.begin()
    if missing := shards.missing():
        encode(shards, missing, columns, config)
    good, entries = shards.finish()
    rejected = Reasons(entry["reason"] for entry in entries)
    for line in rejected.lines():
        print(f"  rejected: {line}")
    bad, left_out = rejected.bad, len(entries) - rejected.bad
    counted = f"{good} good, {bad} rejected{f', {left_out} left out' if left_out else ''}"
    print(f"{counted}{f' (see {config.output}/rejected.jsonl)' if entries else ''}: {config.output}")
    if not good or bad > config.max_rejected * (good + bad):
        raise too_many_rejected(config, bad, good + bad, rejected)


if __name__ == "__main__":
    command_line.run(tokenize)
