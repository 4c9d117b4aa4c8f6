"""Direct preference optimisation of images (arXiv 2305.18290; for images 2311.12908), offline or online.

For each step: pairs -> reference -> update. Pairs are read from token shards (`data`), or drawn and scored with the
engines and rewards of GRPO (`rollout`, configs/shapes/dpo_online.yaml) -> broadcast. The driver passes references to
objects in Ray's store. The loss: algorithms/preference_loss.py.
"""

from simplear_rl.cli import read_command_line
from simplear_rl.config.dpo import DpoConfig

if __name__ == "__main__":  # --help and mistakes are answered before the slow imports below
    command_line = read_command_line(DpoConfig, "dpo", dry_run=True)

from functools import partial

from actors.connection import check_machine
from actors.learner import LearnerGroup
from actors.placement import Stage
from actors.preferences import pair_source
from actors.reference import ReferenceActor
from simplear_rl import sft
from simplear_rl.inputs import require, require_same_tokenizer
from simplear_rl.learning.preference import SOMETIMES, Preference
from simplear_rl.plan.dry_run import plan_dpo
from simplear_rl.policy.vocabulary import read_layout
from simplear_rl.report.live import reporting
from simplear_rl.rewards.files import model_checks
from simplear_rl.run.events import say
from simplear_rl.run.folder import Run, finished
from simplear_rl.run.guards import PreferenceWarnings
from simplear_rl.run.lock import locked
from simplear_rl.run.restart import restarting


@locked("run")
@restarting
def train(config: DpoConfig) -> None:
    """Run the stage to its last step, continuing from its last checkpoint if there is one."""
    if finished(config):
        return
    check_machine()
    require(config, *config.inputs, stages=sft.STAGES, checks=model_checks(config))
    layout = read_layout(config.start, config.tokenizer)
    pairs = pair_source(config, layout)
    run = Run("dpo", config, [*SOMETIMES, *pairs.names])
    identity = require_same_tokenizer(config.tokenizer, run.policies, pairs.shards, config.accept_tokenizer)
    with Stage("dpo", config.roles, config.faults, config.colocated) as stage, reporting(run), run:
        pairs.launch(stage, stage.pool("reference", ReferenceActor, config.start, config.learner.dtype, None))
        objective = partial(Preference, config=config.algorithm)
        learner = LearnerGroup(
            stage, config.learner, config.start, config.steps, config.passes, config.run, objective, identity
        )
        stage.ready()
        if run.last_checkpoint:
            learner.load(run.last_checkpoint)
        pairs.begin(learner)
        warnings = PreferenceWarnings(config.guards)
        for step in run.steps():
            groups, metrics = pairs(step)
            metrics |= learner.step(step, groups)
            metrics |= pairs.finish(step)
            run.log(step, metrics, show=("loss", "accuracy", "reward"))
            say(*warnings.check(step, metrics))
            if run.checkpoint_due:
                run.checkpoint(learner.save)


if __name__ == "__main__":
    command_line.run(train, dry_run=plan_dpo)
