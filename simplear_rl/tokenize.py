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

import logging
import threading
import time
import warnings

import ray.data
from ray.util.annotations import RayDeprecationWarning
from tqdm import tqdm

from actors.connection import connect, require_worker
from actors.placement import check_fits
from simplear_rl.data.columns import Columns
from simplear_rl.data.images import BatchTokenizer
from simplear_rl.data.listing import find_files
from simplear_rl.data.readers import Part
from simplear_rl.data.reasons import Reasons
from simplear_rl.data.shard_writer import ShardWriter
from simplear_rl.data.sources import divide, most_samples, read_batches
from simplear_rl.data.trial import try_first
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
    require_writable(config.output, "output")
    columns = Columns.of(config)
    listing = find_files(source, config.files, config.output, columns)
    parts = divide(listing, config.shard_size)
    print(listing, flush=True)
    shards = ShardWriter(config, parts)
    if not shards.begun:
        print("\n".join(try_first(parts, config.size, columns, config.min_size)), flush=True)
        shards.begin()
    if missing := shards.missing():
        _fill(shards, missing, columns, config)
    good, entries = shards.finish()
    rejected = Reasons(entry["reason"] for entry in entries)
    for line in rejected.lines():
        print(f"  rejected: {line}")
    bad = len(entries)
    print(f"{good} good, {bad} rejected{f' (see {config.output}/rejected.jsonl)' if bad else ''}: {config.output}")
    if not good or bad > config.max_rejected * (good + bad):
        raise _too_many(config, bad, good + bad, rejected)


def _too_many(config: TokenizeConfig, bad: int, total: int, rejected: Reasons) -> UserError:
    small = any("the shorter side is below" in kind for kind in rejected.counts)
    message = (
        f"{config.output}: {bad} of {total} samples rejected, allowed is max_rejected={config.max_rejected:g} "
        f"and one good sample at least{'; min_size=1 enlarges small images, with another output' if small else ''}"
    )
    return UserError("\n  rejected: ".join([message, *rejected.lines()]))


def _fill(shards: ShardWriter, missing: list[Part], columns: Columns, config: TokenizeConfig) -> None:
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
        .flat_map(
            lambda row: read_batches(row["item"], config.size, config.batch_size, columns, config.min_size),
            max_retries=3,
        )
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
    to_do = None if None in rows else sum(filter(None, rows))
    made, entries = shards.made()
    total: list[int] = []  # samples in all parts, once it is known

    def count() -> None:
        total.append(made + len(entries) + most_samples(missing))

    if to_do is not None:
        count()
    elif config.max_rejected < 1:
        threading.Thread(target=count, daemon=True).start()  # the headers of many tars take minutes
    rejected = Reasons(entry["reason"] for entry in entries)
    start, images = time.monotonic(), 0
    with tqdm(total=to_do, desc="tokenize", unit="image") as bar:
        for batch in batches.iter_rows():
            good, reasons = shards.add(batch)
            images += good
            rejected.add(reasons)
            bad = rejected.counts.total()
            bar.set_postfix_str("; ".join([f"{bad} rejected", *rejected.lines()[:1]]), refresh=False)
            bar.update(good + len(reasons))
            if total and bad > config.max_rejected * total[0]:
                raise _too_many(config, bad, total[0], rejected)
    print(f"{images / (time.monotonic() - start):.1f} images/s with the actors' start")


if __name__ == "__main__":
    command_line.run(tokenize)
