"""Places for actors on nodes."""

import pytest

from simplear_rl.config.base import ActorsConfig
from simplear_rl.errors import UserError
from simplear_rl.plan.places import Node, place
from simplear_rl.rollout.capacity import GIB


def test_fractions_share_a_gpu_and_whole_ones_do_not():
    roles = {"a": ActorsConfig(count=2, gpus=0.5), "b": ActorsConfig(gpus=2), "c": ActorsConfig(gpus=0.4)}
    places = place(roles, [Node(8, 4, 80 * GIB)])
    assert [(p.role, p.gpus) for p in places] == [("b", [0, 1]), ("a", [2]), ("a", [2]), ("c", [3])]


def test_an_actor_is_never_split_over_nodes():
    nodes = [Node(8, 3), Node(8, 3)]
    assert [p.node for p in place({"a": ActorsConfig(count=2, gpus=2)}, nodes)] == [0, 1]
    with pytest.raises(UserError, match=r"no node has room for a-2: .*3 GPUs and 8 CPUs.*a\.count, a\.gpus"):
        place({"a": ActorsConfig(count=3, gpus=2)}, [Node(8, 3), Node(8, 3)])
    with pytest.raises(UserError, match="no node has room for a-0"):
        place({"a": ActorsConfig(cpus=9)}, [Node(8, 0), Node(8, 0)])
    with pytest.raises(UserError, match=r"a\.gpus \(1\.5\)"):
        place({"a": ActorsConfig(gpus=1.5)}, [Node(8, 4)])
