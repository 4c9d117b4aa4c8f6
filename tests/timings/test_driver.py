"""`python -m simplear_rl.timings.driver`: its actors still fit the code that a run goes through."""

from simplear_rl.timings.driver import measure


def test_a_step_passes_through_every_role(ray_cluster):
    measure(groups=3, actors=2, repeats=1)
