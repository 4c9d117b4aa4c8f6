"""A stage whose learner is lost goes on from its last checkpoint."""

import os
import signal
from contextlib import contextmanager

import pytest

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import SupervisedConfig
from simplear_rl.errors import ActorLostError, UserError
from simplear_rl.run.folder import Run
from simplear_rl.run.history import read_metrics
from simplear_rl.run.restart import restarting


@pytest.fixture
def config(tmp_path, policy):
    overrides = [
        f"root={tmp_path}",
        f"start={policy}",
        "steps=6",
        "checkpoint_every=2",
        "wandb=false",
        "faults.max_restarts=2",
    ]
    return load_config(SupervisedConfig, CONFIGS / "shapes" / "pretrain.yaml", overrides)


def take_steps(run, before):
    """The steps of a run without actors; `before` is called with each."""
    for step in run.steps():
        before(step)
        run.log(step, {"loss": 0.0}, show=("loss",))
        if run.checkpoint_due:
            run.checkpoint(lambda folder: lambda: (folder / "state").write_text("x"))


def train_with_losses(lost_at, learner=True):
    """A stage without actors that loses its learner in those steps, each as often as it stands in the list."""
    left = list(lost_at)

    def lose(step):
        if step in left:
            left.remove(step)
            raise ActorLostError(f"learner-0 died at {step}", learner=learner)

    @restarting
    def train(config):
        with Run("pretrain", config) as run:
            take_steps(run, lose)

    return train


def test_lost_learner_costs_the_steps_since_the_checkpoint(config):
    train_with_losses([1, 2, 4, 4, 6, 6])(config)
    assert [row["step"] for row in read_metrics(config.run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("losses", "learner"), [([4, 4, 4], True), ([4], False)])
def test_run_ends_when_restarts_do_not_help(config, losses, learner):
    with pytest.raises(UserError, match="(?s)after step 3: learner-0 died at 4.*faults.max_restarts=2") as ended:
        train_with_losses(losses, learner)(config)
    assert not isinstance(ended.value, ActorLostError)


@contextmanager
def losing_its_learner():
    """As the stage around a run explains what the run has ended with."""
    try:
        yield
    except ZeroDivisionError as error:
        raise ActorLostError("learner-0 died", learner=True) from error


def test_a_learner_that_is_lost_after_sigterm_is_not_started_again(config, capsys):
    """A preempted node takes its learner with it while the driver finishes the step."""

    def lose(step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            raise ZeroDivisionError

    @restarting
    def train(config):
        with losing_its_learner(), Run("pretrain", config) as run:
            take_steps(run, lose)

    with pytest.raises(SystemExit) as ended:
        train(config)
    assert ended.value.code == 143
    said = capsys.readouterr().out
    assert "after step 3: learner-0 died\n" in said and "stopped after step 2; the same command continues" in said
    train_with_losses([])(config)
    assert [row["step"] for row in read_metrics(config.run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_folders_of_the_user_among_the_evaluations_are_left_alone(config):
    train_with_losses([])(config)
    for name in "step-000100", "step-000100.bak":
        (config.run / "evaluations" / name).mkdir(parents=True)
    with Run("pretrain", config.model_copy(update={"steps": 7})) as run:
        next(run.steps())
    assert [folder.name for folder in (config.run / "evaluations").iterdir()] == ["step-000100.bak"]
