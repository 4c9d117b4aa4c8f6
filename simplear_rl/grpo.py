"""GRPO with image rewards (DeepSeekMath, arXiv 2402.03300; SimpleAR, arXiv 2504.11455).

For each step: rollout -> score, reference -> advantage, update -> broadcast. The driver passes references to objects in
Ray's store and holds no tensors. Advantages are computed by the learner (algorithms/grpo_loss.py), a group at a time.
"""

from simplear_rl.cli import read_command_line
from simplear_rl.config.stages import GrpoConfig

if __name__ == "__main__":  # --help and mistakes are answered before the slow imports below
    command_line = read_command_line(GrpoConfig, "grpo", dry_run=True)

from functools import partial

import ray

from actors.broadcast import Broadcast
from actors.connection import check_machine
from actors.evaluation import Evaluation, by_engines
from actors.learner import LearnerGroup
from actors.placement import Stage
from actors.reference import ReferenceActor
from actors.reward import RewardActor, save_grid
from actors.rollout import RolloutActor
from actors.sampler import Passes, Sampler
from actors.samples import Samples
from simplear_rl import sft
from simplear_rl.data.prompts import read_rows
from simplear_rl.inputs import require, require_same_tokenizer
from simplear_rl.learning.policy_gradient import PolicyGradient
from simplear_rl.plan.dry_run import plan_grpo
from simplear_rl.policy.vocabulary import read_encoder, read_layout
from simplear_rl.report.live import reporting
from simplear_rl.rewards.files import check_rewards, model_checks
from simplear_rl.rewards.metrics import reward_metrics
from simplear_rl.run.events import say
from simplear_rl.run.folder import Run, finished
from simplear_rl.run.guards import Warnings
from simplear_rl.run.lock import locked
from simplear_rl.run.restart import restarting


@locked("run")
@restarting
def train(config: GrpoConfig) -> None:
    """Run the stage to its last step, continuing from its last checkpoint if there is one."""
    if finished(config):
        return
    check_machine()
    require(config, *config.inputs, stages=sft.STAGES, checks=model_checks(config))
    layout = read_layout(config.start, config.tokenizer)
    rollout, algorithm = config.rollout, config.algorithm
    prompts = read_rows(config.prompts, read_encoder(config.start, rollout.engine.max_prompt_tokens))
    check_rewards(config.reward, prompts)
    evaluation = Evaluation(config, rollout.engine)
    run = Run("grpo", config, evaluation.names)
    identity = require_same_tokenizer(config.tokenizer, run.policies, accept=config.accept_tokenizer)
    with Stage("grpo", config.roles, config.faults, config.colocated) as stage, reporting(run), run:
        engines = stage.pool("rollout.engine.actors", RolloutActor, config.start, rollout.engine)
        rewards = stage.pool("reward.actors", RewardActor, config.reward, config.tokenizer, layout, config.run)
        compared = "reference" in config.roles
        frozen = config.start, config.learner.dtype, config.learner.micro_batch
        references = stage.pool("reference", ReferenceActor, *frozen) if compared else None
        evaluation.launch(stage)
        updates = config.steps * algorithm.optimizer_steps
        objective = partial(PolicyGradient, config=algorithm, ahead=rollout.ahead)
        learner = LearnerGroup(
            stage, config.learner, config.start, updates, config.passes, config.run, objective, identity
        )
        stage.ready()
        say(*ray.get(rewards.fixed[0].check.remote(prompts)))
        broadcast = Broadcast(rollout.broadcast, learner, engines)
        contexts, passes = rollout.engine.max_concurrent, Passes(config.learner.actors.count, config.groups_per_pass)
        sampler = Sampler(engines, rewards, references, contexts, rollout.refill, passes)
        samples = Samples(config, prompts, sampler, broadcast, learner, run.reference)
        samples.begin(run.last_checkpoint)

        warnings = Warnings(config.guards)
        for step in run.steps():
            groups, metrics = samples(step)
            metrics |= learner.step(step, groups)
            metrics |= samples.renew()
            metrics |= reward_metrics(ray.get([group.rewards for group in groups]))
            if evaluation.due(step):
                metrics |= evaluation(step, by_engines(engines, contexts, step, learner.weights))
            run.log(step, metrics, show=("reward", "kl"))
            say(*warnings.check(step, metrics))
            if run.checkpoint_due:
                run.checkpoint(partial(learner.save, behind=samples.behind))
            if step % config.samples_every == 0:
                save_grid(run.samples / f"step-{step:06d}.png", rewards.fixed[0], groups)


if __name__ == "__main__":
    command_line.run(train, dry_run=plan_grpo)
