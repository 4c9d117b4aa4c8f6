"""--dry-run: checks what can be checked and prints what a stage takes and where its actors go. Starts no actor.

Hardware: the Ray cluster of RAY_ADDRESS; without that variable what `plan` in the configuration describes, or else this
machine. Policy: the folder `start`; while it is not there, what `plan` describes, or what the embedded world makes.
An input that is not there is listed as missing and is no error: the plan is often made on another machine. The plans
return what is missing, which the exit status tells.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from ray._private.utils import get_num_cpus

from actors.evaluation import Evaluation
from actors.placement import cluster_nodes
from simplear_rl.config.base import ActorsConfig
from simplear_rl.config.benchmarks import EvaluationConfig
from simplear_rl.config.dpo import DpoConfig
from simplear_rl.config.rollout import EngineConfig, RolloutConfig
from simplear_rl.config.stages import GrpoConfig, StageConfig, SupervisedConfig
from simplear_rl.data.prompts import read_rows
from simplear_rl.data.shards import PAIR, TokenShards
from simplear_rl.errors import UserError
from simplear_rl.files import is_hub_id, is_there
from simplear_rl.inputs import is_made, require_same_tokenizer
from simplear_rl.plan import memory
from simplear_rl.plan.hours import print_hours
from simplear_rl.plan.memory import Memory
from simplear_rl.plan.places import Node, Place, place
from simplear_rl.policy.sizes import PolicySizes, published, read_sizes
from simplear_rl.policy.vocabulary import SPECIAL_TOKENS, read_encoder, read_layout
from simplear_rl.rewards.trial import try_functions
from simplear_rl.rollout.capacity import GIB, context_cache, engine_cache, images_at_once

# What to change where an actor of GRPO does not fit; of its engines, see _engine_keys.
KEYS = {
    "learner.actors": "learner.micro_batch or rollout.samples_per_prompt, or set learner.activation_checkpointing and "
    "learner.zero_stage",
    "reward.actors": "`batch_size` of an entry of reward.models, or set its `dtype`",
    "reference": "learner.micro_batch or rollout.samples_per_prompt",
    "evaluation.scorer": "the size of its model (evaluation.detector, evaluation.judge)",
}


@dataclass(frozen=True)
class Role:
    """One role of a stage."""

    actors: ActorsConfig
    memory: Memory  # of each actor
    keys: str  # what to change where it does not fit


def plan_supervised(config: SupervisedConfig) -> list[Path]:
    """Print the plan of pretraining or SFT; returns what is missing. Raises UserError if something does not fit."""
    decoder, policy = _policy(config)
    data, learner = config.data, config.learner
    if is_there(config.start):
        layout = read_layout(config.start)
        _check_tokenizer(config, [TokenShards(folder, layout) for folder in data.folders if is_there(folder)])
    evaluation = config.evaluation
    _check_evaluation(config, evaluation, config.drawing)
    own = config.drawing if evaluation and not evaluation.engine else None
    scorer, unknown = memory.scorer_memory(evaluation) if evaluation else ({}, [])
    needed = {
        "learner.actors": memory.supervised_memory(decoder, learner, data.micro_batch, data.max_prompt_tokens, own),
        "evaluation.engine.actors": memory.engine_memory(decoder, config.drawing),
        "evaluation.scorer": scorer,
    }
    keys = KEYS | {
        "learner.actors": "data.micro_batch, data.max_prompt_tokens, evaluation.learner_contexts, or set "
        "learner.activation_checkpointing and learner.zero_stage",
        "evaluation.engine.actors": _engine_keys("evaluation.engine", config.drawing),
    }
    images = data.batch_size
    lines = [
        policy,
        f"steps    {config.steps:,} of {images:,} images = {config.steps * images:,} images; a step has "
        f"{images * decoder.tokens:,} visual tokens and up to {images * data.max_prompt_tokens:,} of prompts,",
        f"         in {config.passes} x {data.micro_batch} images on each of {learner.actors.count} ranks",
        *([_in_words(evaluation)] if evaluation else []),
        *(f"unknown  size of evaluation's {name}: not counted" for name in unknown),
    ]
    return _report(config, decoder, lines, needed, keys)


def plan_grpo(config: GrpoConfig) -> list[Path]:
    """Print the plan of GRPO; returns what is missing. Raises UserError if something does not fit."""
    decoder, policy = _policy(config)
    rollout, learner, engine = config.rollout, config.learner, config.rollout.engine
    rows = []
    if is_there(config.start) and is_there(config.prompts):
        rows = read_rows(config.prompts, read_encoder(config.start, engine.max_prompt_tokens))
    try_functions(config.reward, rows)
    if is_there(config.start):
        _check_tokenizer(config)
    evaluation = config.evaluation
    _check_evaluation(config, evaluation, engine)
    prompt = engine.max_prompt_tokens
    images = rollout.prompts_per_step * rollout.samples_per_prompt
    scorer, unknown_scorers = memory.scorer_memory(evaluation) if evaluation else ({}, [])
    unknown = memory.reward_memory(config.reward.models)[1]
    needed = memory.grpo_roles(config, decoder) | {"evaluation.scorer": scorer}
    lines = [
        policy,
        f"steps    {config.steps:,} of {rollout.prompts_per_step} prompts x {rollout.samples_per_prompt} = {images} "
        f"images; a step has {images * decoder.tokens:,} visual tokens and up to {images * prompt:,} of prompts,",
        f"         {rollout.prompts_per_step // learner.actors.count} prompts on each of {learner.actors.count} ranks, "
        f"optimizer steps: {config.algorithm.optimizer_steps} a step",
        _engines(rollout, decoder),
        *([_in_words(evaluation)] if evaluation else []),
        *(f"unknown  size of reward {name}: not counted" for name in unknown),
        *(f"unknown  size of evaluation's {name}: not counted" for name in unknown_scorers),
    ]
    keys = KEYS | {"rollout.engine.actors": _engine_keys("rollout.engine", rollout.engine)}
    return _report(config, decoder, lines, needed, keys)


def plan_dpo(config: DpoConfig) -> list[Path]:
    """Print the plan of DPO; returns what is missing. Raises UserError if something does not fit."""
    decoder, policy = _policy(config)
    rollout, learner, evaluation = config.rollout, config.learner, config.evaluation
    if is_there(config.start):
        layout, folders = read_layout(config.start), config.data.folders if config.data else []
        _check_tokenizer(config, [TokenShards(folder, layout, PAIR) for folder in folders if is_there(folder)])
    steps = f"{config.groups} pairs, {config.passes} on each of {learner.actors.count} ranks, one after the other"
    lines: list[str] = []
    needed = memory.dpo_roles(config, decoder)
    if rollout and config.reward and config.prompts:
        rows = []
        if is_there(config.start) and is_there(config.prompts):
            rows = read_rows(config.prompts, read_encoder(config.start, rollout.engine.max_prompt_tokens))
        try_functions(config.reward, rows)
        _check_evaluation(config, evaluation, rollout.engine)
        prompts, samples, images = rollout.prompts_per_step, rollout.samples_per_prompt, config.images_per_pass
        steps = f"{prompts} prompts x {samples} = {prompts * samples} images, up to {images} of a prompt in pairs"
        lines += [_engines(rollout, decoder), *([_in_words(evaluation)] if evaluation else [])]
        unknown = memory.reward_memory(config.reward.models)[1]
        lines += [f"unknown  size of reward {name}: not counted" for name in unknown]
    if evaluation:
        needed["evaluation.scorer"], names = memory.scorer_memory(evaluation)
        lines += [f"unknown  size of evaluation's {name}: not counted" for name in names]
    passes = "the images of a pass (without algorithm.margin two)"
    keys = KEYS | {"reference": passes}
    if rollout:
        keys["rollout.engine.actors"] = _engine_keys("rollout.engine", rollout.engine)
    keys["learner.actors"] = f"{passes}, or set learner.activation_checkpointing and learner.zero_stage"
    return _report(config, decoder, [policy, f"steps    {config.steps:,} of {steps}", *lines], needed, keys)


def _engine_keys(section: str, engine: EngineConfig) -> str:
    """What to lower where an engine does not fit: only vLLM's cache is of a size that is stated."""
    return (
        f"{section}.kv_cache_gib and {section}.max_concurrent" if engine.type == "vllm" else f"{section}.max_concurrent"
    )


def _engines(rollout: RolloutConfig, decoder: PolicySizes) -> str:
    engine, guided = rollout.engine, rollout.guidance_scale != 1
    at_once, cache = images_at_once(decoder, engine, guided), engine_cache(decoder, engine)
    return (
        f"engines  {engine.actors.count} that draw {at_once} {'guided' if guided else 'unguided'} images at once each; "
        f"{cache / GIB:.3g} GiB of cache, {context_cache(decoder, engine) / GIB:.3f} GiB a context"
    )


def _check_tokenizer(config: StageConfig, shards: Sequence[TokenShards] = ()) -> None:
    if is_there(config.tokenizer):
        require_same_tokenizer(config.tokenizer, [config.start], shards, config.accept_tokenizer)


def _check_evaluation(
    config: SupervisedConfig | GrpoConfig | DpoConfig, evaluation: EvaluationConfig | None, engine: EngineConfig
) -> None:
    if not evaluation or all(is_there(path) or is_hub_id(path) for path in (config.start, *evaluation.files)):
        Evaluation(config, engine)


def _in_words(evaluation: EvaluationConfig) -> str:
    prompts = f"{evaluation.prompt_count} prompts" if evaluation.prompt_count else "all prompts"
    return (
        f"scores   every {evaluation.every} steps and after the last: {prompts} of {evaluation.benchmark} x "
        f"{evaluation.images_per_prompt} images"
    )


def _policy(config: StageConfig) -> tuple[PolicySizes, str]:
    """The policy's sizes, and a line that says where they are from."""
    if is_there(config.start):
        decoder = read_sizes(config.start, config.tokenizer if is_there(config.tokenizer) else None)
        source = f"{config.start}"
    elif config.plan:
        decoder = published(config.plan.policy, config.plan.resolution)
        source = f"assumed: {config.plan.policy} at {config.plan.resolution} pixels (plan), {config.start} is missing"
    elif config.world == "shapes":
        decoder, source = _world_policy(), f"assumed: the embedded world's, {config.start} is missing"
    else:
        raise UserError(f"{config.start}: no policy there; --dry-run takes its sizes from `plan`, which is not set")
    return decoder, (
        f"policy   {decoder.parameters:,} parameters, {decoder.vocabulary:,} ids, {decoder.tokens:,} tokens an image; "
        f"{source}"
    )


def _world_policy() -> PolicySizes:
    from transformers import Qwen2Config

    from simplear_rl.shapes import prepare
    from simplear_rl.tokenizers.fsq import FsqTokenizer

    codes = prod(FsqTokenizer().quantizer.levels)
    vocabulary = len(prepare.policy_words()) + len(SPECIAL_TOKENS) + 2 + codes  # unknown word and padding
    sizes = Qwen2Config(**prepare.POLICY_GEOMETRY, vocab_size=vocabulary)
    return PolicySizes.of(sizes, codes, (prepare.world.SIZE // FsqTokenizer.patch) ** 2)


def _hardware(config: StageConfig) -> tuple[list[Node], str]:
    """The machines, and where that is from."""
    gpu_memory = config.plan.gpu_memory_gib * GIB if config.plan else None
    if address := os.environ.get("RAY_ADDRESS"):
        return [Node(cpus, gpus, gpu_memory) for cpus, gpus in cluster_nodes()], f"Ray cluster {address}"
    if config.plan:
        p = config.plan
        return [Node(p.cpus_per_node, p.gpus_per_node, gpu_memory) for _ in range(p.nodes)], "assumed (plan)"
    gpus = torch.cuda.device_count()
    smallest = min((torch.cuda.get_device_properties(i).total_memory for i in range(gpus)), default=None)
    return [Node(get_num_cpus(), gpus, smallest)], "this machine"  # of a container, its share


def _report(
    config: SupervisedConfig | GrpoConfig | DpoConfig,
    decoder: PolicySizes,
    lines: list[str],
    needed: Mapping[str, Memory],
    keys: Mapping[str, str],
) -> list[Path]:
    """Print everything; returns the inputs that are missing.

    `needed` and `keys`, by role: the memory of each actor, and what to change where it does not fit.

    Raises UserError if an actor has no place, or the actors of a GPU not enough memory.
    """
    roles = {role: Role(actors, needed[role], keys[role]) for role, actors in config.roles.items()}
    nodes, source = _hardware(config)
    print(*lines, sep="\n")
    for kind, number in Counter((node.cpus, node.gpus, node.gpu_memory) for node in nodes).items():
        each = f" of {kind[2] / GIB:.0f} GiB" if kind[2] else ""
        print(f"cluster  {number} x ({kind[1]} GPUs{each}, {kind[0]:g} CPUs); {source}")
    places = place({role: part.actors for role, part in roles.items()}, nodes, config.colocated)
    for i, node in enumerate(nodes):
        count = Counter(where.role for where in places if where.node == i)
        actors = ", ".join(f"{number} {role}" for role, number in count.items()) or "no actors"
        print(f"node {i:<3} {actors}; {sum(free > 0.99 for free in node.free_gpus)} GPUs idle")
    print("memory of each actor, GiB")
    for role, part in roles.items():
        print(f"  {role}: {_sum(part)}")
    print_hours(config, decoder, places, nodes)
    missing = []
    for path in config.inputs:
        if is_hub_id(path):
            print(f"fetched  {path} from the Hugging Face Hub, when the run starts")
        elif not is_there(path) and is_made(config, path):
            print(f"made     {path} by the embedded world, when the run starts")
        elif not is_there(path):
            print(f"missing: {path}")
            missing.append(path)
    _check_memory(places, nodes, roles)
    return missing


def _sum(part: Role) -> str:
    if not part.actors.gpus:
        return "without a GPU, not planned"
    parts = part.memory | {"process": memory.PROCESS}
    return f"{sum(parts.values()) / GIB:.1f} = " + " + ".join(
        f"{size / GIB:.1f} {name}" for name, size in parts.items() if size
    )


def _check_memory(places: list[Place], nodes: list[Node], roles: dict[str, Role]) -> None:
    on_gpu: dict[tuple[int, int], Counter[str]] = {}
    for where in places:
        for gpu in where.gpus[:1]:  # an actor computes on its first
            on_gpu.setdefault((where.node, gpu), Counter())[where.role] += 1
    for (node, _), count in on_gpu.items():
        room = nodes[node].gpu_memory
        needed = sum(number * (sum(roles[role].memory.values()) + memory.PROCESS) for role, number in count.items())
        if room is None:
            raise UserError("the memory of the cluster's GPUs is not known to Ray: state plan.gpu_memory_gib")
        if needed > room * memory.USABLE:
            actors = " and ".join(f"{number} x {role} ({_sum(roles[role])})" for role, number in count.items())
            keys = "; ".join(f"for {role} lower {roles[role].keys}" for role in count)
            share = f"; or raise {', '.join(f'{role}.gpus' for role in count)}" if count.total() > 1 else ""
            raise UserError(
                f"a GPU of {room / GIB:.0f} GiB, {memory.USABLE:.0%} of it planned for use, does not hold {actors}: "
                f"{needed / GIB:.1f} GiB. {keys[0].upper()}{keys[1:]}{share}"
            )
