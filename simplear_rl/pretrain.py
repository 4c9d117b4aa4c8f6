"""Pretraining: next-token prediction on token shards.

For each step: batch -> cross-entropy over text and visual ids -> update; now and then evaluation and a sample grid. SFT
is the same on curated data.
"""

from simplear_rl.cli import read_command_line
from simplear_rl.config.stages import SupervisedConfig

if __name__ == "__main__":  # --help and mistakes are answered before the slow imports below
    command_line = read_command_line(SupervisedConfig, "pretrain", dry_run=True)

from functools import partial

from actors.connection import check_machine
from actors.learner import LearnerGroup
from actors.placement import Stage
from actors.supervised_evaluation import SupervisedEvaluation
from simplear_rl.data.shards import TokenShards
from simplear_rl.inputs import Stages, require, require_same_tokenizer
from simplear_rl.learning.supervised import Supervised
from simplear_rl.plan.dry_run import plan_supervised
from simplear_rl.policy.vocabulary import read_encoder, read_layout
from simplear_rl.report.grids import save_grid
from simplear_rl.report.live import reporting
from simplear_rl.run.folder import Run, finished
from simplear_rl.run.lock import locked
from simplear_rl.run.restart import restarting
from simplear_rl.tokenizers.cosmos import CosmosTokenizer


@locked("run")
@restarting
def train(config: SupervisedConfig, name: str = "pretrain", before: Stages | None = None) -> None:
    """Run the stage to its last step, continuing from its last checkpoint if there is one.

    `before` runs the stages before this one where the miniature world needs their policy, see `require`.
    """
    if finished(config):
        return
    check_machine()
    require(config, *config.inputs, stages=before)
    tokenizer, layout = CosmosTokenizer(config.tokenizer), read_layout(config.start, config.tokenizer)
    read_encoder(config.start)
    shards = [TokenShards(folder, layout) for folder in config.data.folders]  # refuses what the footers give away
    evaluation, validated = SupervisedEvaluation(config), config.data.validation
    run = Run(name, config, [*(validated.names if validated else ()), *evaluation.names])
    identity = require_same_tokenizer(config.tokenizer, run.policies, shards, config.accept_tokenizer)
    with Stage(name, config.roles, config.faults) as stage, reporting(run), run:
        evaluation.launch(stage)
        objective = partial(Supervised, config=config.data, seed=config.seed, steps=config.steps)
        learner = LearnerGroup(
            stage, config.learner, config.start, config.steps, config.passes, config.run, objective, identity
        )
        stage.ready()
        if run.last_checkpoint:
            learner.load(run.last_checkpoint)
        for step in run.steps():
            metrics = learner.step(step)
            if evaluation.due(step):
                metrics |= evaluation(step, learner)
            run.log(step, metrics, show=("loss",))
            if run.checkpoint_due:
                run.checkpoint(learner.save)
                if config.sample_prompts:
                    codes = learner.sample(config.sample_prompts, images=8, seed=config.seed, step=step)
                    images = [tokenizer.decode(c, layout.rows, layout.columns) for c in codes]
                    rows = list(zip(config.sample_prompts, images, strict=True))
                    save_grid(run.samples / f"step-{step:06d}.png", rows)


if __name__ == "__main__":
    command_line.run(train, dry_run=plan_supervised)
