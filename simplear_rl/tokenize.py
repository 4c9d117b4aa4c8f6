"""Your own images: images and captions become token shards for pretraining and SFT.

Reads JSON lines (image: path relative to the file, caption, optional short_caption), WebDataset tars (jpg, png or webp
with txt or json) or Parquet files with image bytes, from a folder or a data set of the Hugging Face Hub. The shorter
side of an image is resized to `size`, the centre is cut out, and the visual tokenizer's actors encode it. Bad samples
are listed in rejected.jsonl. A run that was stopped continues with the same command.
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

import logging
import time
import warnings

import ray.data
from ray.util.annotations import RayDeprecationWarning
from tqdm import tqdm

from actors.connection import connect, require_worker
from actors.placement import check_fits
from simplear_rl.data.images import BatchTokenizer
from simplear_rl.data.shard_writer import ShardWriter
from simplear_rl.data.sources import Part, divide, find_files, read_batches
from simplear_rl.errors import UserError
from simplear_rl.files import require_writable, resolve
from simplear_rl.inputs import require
from simplear_rl.tokenizers.cosmos import CosmosTokenizer


def tokenize(config: TokenizeConfig) -> None:
    """Make the shards that are missing, then rejected.jsonl."""
    require_writable(config.output, "output")
    require(config, config.tokenizer, config.input)
    CosmosTokenizer(config.tokenizer)  # what is wrong with it shows before anything starts
    pattern = config.files.removeprefix("**/")  # on the Hub, `*` stands for folders too
    source = resolve(config.input, [pattern], "dataset")
    shards = ShardWriter(config, divide(source, find_files(source, config.files), config.shard_size))
    if missing := shards.missing():
        _fill(shards, missing, config)
    good, bad = shards.finish()
    print(f"{good} good, {bad} rejected{f' (see {config.output}/rejected.jsonl)' if bad else ''}: {config.output}")
    if not good or bad > config.max_rejected * (good + bad):
        raise UserError(
            f"{config.output}: {bad} of {good + bad} samples rejected, allowed is max_rejected={config.max_rejected:g} "
            "and one good sample at least"
        )


def _fill(shards: ShardWriter, missing: list[Part], config: TokenizeConfig) -> None:
    connect()
    resources, actors = ray.cluster_resources(), config.actors
    check_fits({"actors": actors}, resources)
    if resources["CPU"] - actors.count * actors.cpus < 1:
        raise UserError(
            f"actors.count x actors.cpus ({actors.count} x {actors.cpus:g}) leave no CPU for reading: the cluster has "
            f"{resources['CPU']:g}"
        )
    require_worker()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # By default a task that kills its process is repeated forever; max_retries has no place yet that is not deprecated.
    warnings.simplefilter("ignore", RayDeprecationWarning)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    context.target_max_block_size = 1  # a block is a row, so that a batch goes to an actor as soon as it is read
    batches = (
        ray.data.from_items(missing)
        .flat_map(lambda row: read_batches(row["item"], config.size, config.batch_size), max_retries=3)
        .map(
            BatchTokenizer,
            fn_constructor_args=(config.tokenizer, config.size),
            compute=ray.data.ActorPoolStrategy(size=config.actors.count),
            num_cpus=config.actors.cpus,
            num_gpus=config.actors.gpus,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(config.actors.threads)}},
        )
    )
    rows = [part.rows for part in missing]
    total = None if None in rows else sum(filter(None, rows))
    start, images, rejected = time.monotonic(), 0, 0
    with tqdm(total=total, desc="tokenize", unit="image") as bar:
        for batch in batches.iter_rows():
            good, bad = shards.add(batch)
            images, rejected = images + good, rejected + bad
            bar.set_postfix_str(f"{rejected} rejected", refresh=False)
            bar.update(good + bad)
    print(f"{images / (time.monotonic() - start):.1f} images/s with the actors' start")


if __name__ == "__main__":
    command_line.run(tokenize)
