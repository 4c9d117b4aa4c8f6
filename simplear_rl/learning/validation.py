"""The loss on held-out token shards, while a supervised stage trains. It changes no weight and no later step."""

from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING

import torch

from simplear_rl.config.data import TokenDataConfig, TokenSourceConfig, ValidationConfig
from simplear_rl.data.batches import TokenBatch, TokenDataset
from simplear_rl.data.shards import TokenShards
from simplear_rl.errors import UserError
from simplear_rl.learning.cross_entropy import summed_cross_entropy

if TYPE_CHECKING:  # the learner brings DeepSpeed, which the drivers do without
    from simplear_rl.learning.learner import Learner

SEED = 0  # whatever the run's: runs that differ in it are compared on the same images


class Validation:
    """Every rank computes the loss on its share of the same images each time; the sums are taken over all.

    Raises:
        UserError: a row is bad, names it; or a source has fewer images than there are ranks.
    """

    def __init__(self, learner: "Learner", data: TokenDataConfig, validation: ValidationConfig, steps: int):
        self.learner, self.every, self.steps = learner, validation.every, steps
        self.share = data.micro_batch * learner.ranks
        self.batches: Mapping[str, tuple[TokenBatch, int]] = {
            name: self._batch(data, name, TokenSourceConfig(shards=folder), validation.images)
            for name, folder in validation.sources.items()
        }

    def _batch(
        self, data: TokenDataConfig, name: str, source: TokenSourceConfig, images: int
    ) -> tuple[TokenBatch, int]:
        """The rank's share of a source's images, and the passes that all ranks need for theirs."""
        learner = self.learner
        there = int(TokenShards(source.shards, learner.layout).sizes.sum())
        number = min(images, there)
        if number < learner.ranks:
            raise UserError(f"data.validation.sources.{name}: {number} images for {learner.ranks} learner ranks")
        whole = {"sources": [source], "batch_size": number, "drop_caption": 0.0, "short_caption": 0.0}
        dataset = TokenDataset(
            data.model_copy(update=whole), learner.encode, learner.layout, SEED, learner.rank, learner.ranks
        )
        return dataset.batch(1), -(-number // self.share)

    def due(self, step: int) -> bool:
        """Whether a validation follows the step: the last one always has one."""
        return step % self.every == 0 or step == self.steps

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Mean cross-entropy over the tokens of all sources, and of each. Every rank must call it."""
        start = monotonic()
        self.learner.model.eval()
        sums = {name: self._sums(*batch) for name, batch in self.batches.items()}
        self.learner.model.train()
        losses = {f"validation_loss_{name}": loss / targets for name, (loss, targets) in sums.items()}
        total, targets = (sum(values) for values in zip(*sums.values(), strict=True))
        return {"validation_loss": total / targets, **losses, "validation_seconds": monotonic() - start}

    def _sums(self, batch: TokenBatch, passes: int) -> tuple[float, float]:
        """Summed cross-entropy and number of targets of a source, over all ranks."""
        sums = torch.tensor([0.0, float(batch.target_lengths.sum())], dtype=torch.float64, device=self.learner.device)
        for rows in batch.micro_batches(passes):
            ids_BL, labels_BL = batch.padded(rows if len(rows) else [0], self.learner.device)
            loss = self.learner.forward(summed_cross_entropy, ids_BL, labels_BL)
            sums[0] += loss if len(rows) else 0  # where others have one row more this rank only takes part
        torch.distributed.all_reduce(sums)
        loss, targets = sums.tolist()
        return loss, targets
