"""DPO on the learner: log-probs of the images of pairs under the policy, the loss of the pairs, the optimizer step.

A group has the images of one prompt with their rewards; the pairs follow from these (algorithms/pairs.py). Of a stored
pair the chosen image has the reward 1 and the other one 0.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from simplear_rl.algorithms.pairs import preference_pairs
from simplear_rl.algorithms.preference_loss import preference_loss
from simplear_rl.config.preference import PreferenceConfig
from simplear_rl.policy.log_probs import rollout_log_probs
from simplear_rl.policy.rollouts import ScoredRollout
from simplear_rl.run.guards import Evidence, group_evidence, require_finite

if TYPE_CHECKING:  # the learner brings DeepSpeed, which the drivers do without
    from simplear_rl.learning.learner import Learner

# Means over the pairs of a step; a step without pairs logs none of them, one without decided pairs no accuracy.
OF_PAIRS = ("loss", "implicit_reward_chosen", "implicit_reward_rejected", "margin", "winners_log_prob", "winners_gain")
SOMETIMES = ("accuracy", *OF_PAIRS)


class Preference:
    """The objective of DPO: the loss of the pairs among the images of each group."""

    def __init__(self, learner: "Learner", config: PreferenceConfig):
        self.learner, self.config = learner, config

    def images(self, groups: Sequence[ScoredRollout]) -> int:
        """See Objective."""
        return sum(len(group.rewards) for group in groups)

    def step(self, step: int, groups: Sequence[ScoredRollout]) -> dict[str, float]:
        """See Objective."""
        return update(self.learner, groups, self.config)


def update(learner: "Learner", groups: Sequence[ScoredRollout], config: PreferenceConfig) -> dict[str, float]:
    """One optimizer step on this rank's groups, one pass for each. Metrics are those of all ranks.

    - `pairs`, and `groups_without_pairs`: those whose rewards are all equal, which move nothing;
    - `accuracy`: share of pairs in which the policy has raised the chosen image more than the other one, of the pairs
      where it raised one more. At the start there are none, and it is not logged;
    - `implicit_reward_*`: beta (log policy - log reference), `margin`: their difference;
    - `winners_log_prob`: of a winner's code, nats, and `winners_gain`, that less the reference's.

    Raises:
        UserError: a reward, a log-prob, the loss or a gradient is not finite; the step is not taken.
    """
    for group in groups:
        _require_finite(learner, group)
    pairs = [torch.from_numpy(preference_pairs(group.rewards, config.margin)) for group in groups]
    total = torch.tensor(float(sum(map(len, pairs))), device=learner.device)
    torch.distributed.all_reduce(total)  # over all ranks
    # DeepSpeed averages over passes and ranks; the mean over pairs is taken over the whole batch.
    scale = learner.micro_batches * learner.ranks / max(total.item(), 1.0)
    sums = torch.zeros(len(OF_PAIRS) + 3, dtype=torch.float64, device=learner.device)
    for group, pairs_N2 in zip(groups, pairs, strict=True):
        log_probs_GT = learner.forward(rollout_log_probs, [group.rollout], learner.layout)
        loss = 0 * log_probs_GT.sum()  # every rank makes every pass
        if len(pairs_N2):
            loss, found = _loss(log_probs_GT, group, pairs_N2.to(learner.device), config)
            sums += found
        sums[-1] += not len(pairs_N2)
        learner.backward(loss * scale, partial(_evidence, group, log_probs_GT))
    torch.distributed.all_reduce(sums)
    *means, decided, right, without = sums.tolist()
    metrics = {"pairs": total.item(), "groups_without_pairs": without} | learner.finish_step()
    if total:
        metrics |= {name: value / total.item() for name, value in zip(OF_PAIRS, means, strict=True)}
    return metrics | ({"accuracy": right / decided} if decided else {})


def _loss(
    log_probs_GT: torch.Tensor, group: ScoredRollout, pairs_N2: torch.Tensor, config: PreferenceConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the losses of a group's pairs, and what is logged, summed over them."""
    assert group.reference_log_probs is not None
    reference_GT = torch.from_numpy(group.reference_log_probs).to(log_probs_GT)
    chosen_N, rejected_N = pairs_N2.unbind(1)
    winners_NT, reference_NT = log_probs_GT[chosen_N], reference_GT[chosen_N]
    losses = preference_loss(winners_NT, log_probs_GT[rejected_N], reference_NT, reference_GT[rejected_N], config)
    margin_N = losses.chosen_gains - losses.rejected_gains
    logged = [
        losses.loss.detach(),
        config.beta * losses.chosen_gains,
        config.beta * losses.rejected_gains,
        config.beta * margin_N,
        winners_NT.detach().mean(-1),
        (winners_NT.detach() - reference_NT).mean(-1),
        margin_N != 0,
        margin_N > 0,
        torch.zeros_like(margin_N),
    ]
    return losses.loss.sum(), torch.stack([values.double().sum() for values in logged])


def _require_finite(learner: "Learner", group: ScoredRollout) -> None:
    named = {"the reward": group.rewards, "the reference log-prob": group.reference_log_probs}
    require_finite(learner.run, learner.step + 1, named, lambda: _evidence(group))


def _evidence(group: ScoredRollout, log_probs_GT: torch.Tensor | None = None) -> Evidence:
    assert group.reference_log_probs is not None
    values = {"rewards": group.rewards, "reference_log_probs": group.reference_log_probs}
    if log_probs_GT is not None:
        values["log_probs"] = log_probs_GT.detach().cpu().numpy()
    return group_evidence(group.rollout, values)
