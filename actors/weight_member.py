"""What learner and rollout actors need to be members of one process group, over which weights are broadcast."""

from collections.abc import Iterator
from contextlib import contextmanager

from simplear_rl.weights.group import WeightGroup


class WeightMember:
    """Base of the actors that a process group of weights can have as members."""

    weight_group: WeightGroup | None = None

    def join_group(self, rendezvous: str, rank: int, size: int) -> None:
        """See WeightGroup; leaves the group before."""
        self.weight_group = None
        self.weight_group = WeightGroup(rendezvous, rank, size)

    def in_group(self) -> bool:
        """False before `join_group`, and after a failure or a restart."""
        return self.weight_group is not None

    @contextmanager
    def weight_transfer(self) -> Iterator[WeightGroup]:
        """Around a broadcast. One that fails leaves the group.

        Over gloo the other members see it go at once; over NCCL those in the middle of a transfer wait until it times
        out, while the driver raises the error without waiting for them.
        """
        group, self.weight_group = self.weight_group, None
        if group is None:
            raise RuntimeError(f"{self} is in no weight group; it has to join one first")
        try:
            yield group
        except BaseException:
            group.leave()  # whoever keeps the error keeps its frames, and these the group
            raise
        self.weight_group = group
