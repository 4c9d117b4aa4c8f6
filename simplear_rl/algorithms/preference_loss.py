"""The losses of pairs: DPO (arXiv 2305.18290) and IPO (arXiv 2310.12036), for log-probs of an image's codes.

The likelihood of an autoregressive policy is exact, so that this is DPO itself and not the bound that diffusion models
need (arXiv 2311.12908).
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from simplear_rl.config.preference import PreferenceConfig


@dataclass(frozen=True)
class PairLosses:
    """Of N pairs, [N] each."""

    loss: torch.Tensor
    chosen_gains: torch.Tensor  # log policy - log reference of the winners, detached
    rejected_gains: torch.Tensor  # of the losers


def preference_loss(
    chosen_NT: torch.Tensor,
    rejected_NT: torch.Tensor,
    reference_chosen_NT: torch.Tensor,
    reference_rejected_NT: torch.Tensor,
    config: PreferenceConfig,
) -> PairLosses:
    """The loss of each pair, from log-probs of the codes of winners and losers under policy and reference.

    With m the difference of the two gains, a gain being log policy - log reference of an image, summed over its codes
    or averaged:

    - dpo: -(1 - e) log sigmoid(beta m) - e log sigmoid(-beta m), e the label smoothing (cDPO);
    - ipo: (m - 1 / (2 beta))^2.

    `sft` times the mean negative log-prob of a winner's code is added. Where policy and reference are equal every gain
    is exactly 0, and the loss of dpo is ln 2.
    """
    gains_N = []
    for policy_NT, reference_NT in (chosen_NT, reference_chosen_NT), (rejected_NT, reference_rejected_NT):
        # The difference of two sums over thousands of codes would lose digits that the sum of differences keeps.
        gain_NT = policy_NT - reference_NT
        gains_N.append(gain_NT.mean(-1) if config.length_normalized else gain_NT.sum(-1))
    chosen_N, rejected_N = gains_N
    margin_N = chosen_N - rejected_N
    if config.loss == "ipo":
        loss_N = (margin_N - 1 / (2 * config.beta)).square()
    else:
        logits_N, smoothing = config.beta * margin_N, config.label_smoothing
        loss_N = -(1 - smoothing) * logsigmoid(logits_N) - smoothing * logsigmoid(-logits_N)
    loss_N = loss_N - config.sft * chosen_NT.mean(-1)
    return PairLosses(loss_N, chosen_N.detach(), rejected_N.detach())
