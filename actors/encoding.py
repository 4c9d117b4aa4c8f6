"""Images and captions of many files become codes, on Ray Data: tasks read and crop, actors encode."""

import logging
import threading
import time
import warnings

import ray.data
from ray.util.annotations import RayDeprecationWarning
from tqdm import tqdm

from actors.connection import connect, require_worker
from actors.environment import actor_environment
from actors.placement import check_fits
from simplear_rl.config.data import TokenizeConfig
from simplear_rl.data.columns import Columns
from simplear_rl.data.images import BatchTokenizer
from simplear_rl.data.readers import Part
from simplear_rl.data.reasons import Reasons
from simplear_rl.data.shard_writer import ShardWriter
from simplear_rl.data.sources import most_samples, read_batches
from simplear_rl.errors import UserError


def encode(shards: ShardWriter, missing: list[Part], columns: Columns, config: TokenizeConfig) -> None:
    """Read, crop and encode the `missing` parts, and hand them to `shards`.

    Raises:
        UserError: the cluster is too small, or `max_rejected` cannot be kept any more.
    """
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
            runtime_env={"env_vars": actor_environment(config.actors)},
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
            bad = rejected.bad
            bar.set_postfix_str("; ".join([f"{bad} rejected", *rejected.lines()[:1]]), refresh=False)
            bar.update(good + len(reasons))
            if total and bad > config.max_rejected * total[0]:
                share = f"{total[0]}" if to_do is not None else f"at most {total[0]}"
                raise too_many_rejected(config, bad, share, rejected)
    print(f"{images / (time.monotonic() - start):.1f} images/s with the actors' start")


def too_many_rejected(config: TokenizeConfig, bad: int, total: int | str, rejected: Reasons) -> UserError:
    """The error that says so, with the reasons."""
    small = any("the shorter side is below" in kind for kind in rejected.counts)
    message = (
        f"{config.output}: {bad} of {total} samples rejected, allowed is max_rejected={config.max_rejected:g} "
        f"and one good sample at least{'; min_size=1 enlarges small images, with another output' if small else ''}"
    )
    return UserError("\n  rejected: ".join([message, *rejected.lines()]))
