"""The plan of time against what an H100 took (docs/timings.md), and its arithmetic."""

from dataclasses import replace

import pytest

from simplear_rl.config.base import CONFIGS, ActorsConfig
from simplear_rl.config.learner import AlgorithmConfig, LearnerConfig, OptimizerConfig
from simplear_rl.config.load import load_config
from simplear_rl.config.rollout import EngineConfig
from simplear_rl.config.stages import GrpoConfig, SupervisedConfig
from simplear_rl.errors import UserError
from simplear_rl.gpus import GPUS, gpu_name
from simplear_rl.plan import work
from simplear_rl.plan.layouts import layouts
from simplear_rl.plan.scaling import print_table
from simplear_rl.plan.speed import Assumptions, Measured, Speed, on_cpu, read_measured
from simplear_rl.plan.time import Crowding, grpo_step, supervised_step
from simplear_rl.policy.sizes import published

H100 = Speed(GPUS["H100"])
DECODER = published("simplear-0.5b", 1024)


@pytest.fixture
def grpo():
    return load_config(GrpoConfig, CONFIGS / "simplear_0.5b" / "grpo_1gpu.yaml", [])


def of_grpo(config, **rollout):
    return config.model_copy(update={"rollout": config.rollout.model_copy(update=rollout)})


def of_prompts(config, prompts, minibatches=1, micro_batch=None):
    config = of_grpo(config, prompts_per_step=prompts)
    algorithm = config.algorithm.model_copy(update={"minibatches": minibatches})
    learner = config.learner.model_copy(update={"micro_batch": micro_batch})
    return config.model_copy(update={"algorithm": algorithm, "learner": learner})


@pytest.mark.parametrize(
    ("engine", "contexts", "measured"),
    [
        ("transformers", 2, 4.47),
        ("transformers", 28, 5.71),
        ("transformers", 56, 6.85),
        ("transformers", 112, 9.45),
        ("transformers", 224, 14.80),
        ("vllm", 2, 8.66),
        ("vllm", 28, 13.44),
        ("vllm", 56, 15.60),
    ],
)
def test_decoding_takes_what_it_took_on_an_h100(engine, contexts, measured):
    drawn = work.decoding(DECODER, EngineConfig(type=engine, dtype="bfloat16"), H100, contexts, prompt=40)
    assert H100.seconds("rollout", drawn, "bfloat16") == pytest.approx(measured, rel=0.12)


@pytest.mark.parametrize(("samples", "measured"), [(4, 0.631), (16, 2.077)])
def test_an_update_takes_what_it_took_on_an_h100(samples, measured):
    # That policy had few text ids.
    decoder = replace(DECODER, vocabulary=DECODER.codes + 1000)
    learner = LearnerConfig(
        zero_stage=1, dtype="bfloat16", activation_checkpointing=True, optimizer=OptimizerConfig(learning_rate=1e-5)
    )
    updated = work.updating(decoder, learner, AlgorithmConfig(), 2, samples, 1, 40)
    assert H100.seconds("update", updated, "bfloat16") == pytest.approx(measured, rel=0.12)


def test_clip_takes_what_it_took_on_an_h100(grpo):
    (clip,) = grpo.reward.models
    for dtype, measured in ("float32", 0.231), ("bfloat16", 0.024):
        featured = work.featuring(clip.model_copy(update={"dtype": dtype}), 28)
        assert H100.seconds("reward", featured, dtype) == pytest.approx(measured, rel=0.6)


def test_what_limits_a_phase_is_named(grpo):
    decoder, few = DECODER, of_prompts(grpo, 1)
    one = grpo_step(few, decoder, lambda _: H100, Crowding({}))
    assert one.bottleneck == ("rollout", "starting operators")
    many = grpo_step(grpo, decoder, lambda _: H100, Crowding({}))
    assert many.bottleneck == ("update", "arithmetic")
    assert one.seconds < many.seconds < 28 * one.seconds
    slow = replace(GPUS["H100"], bandwidth=1e12)
    assert grpo_step(grpo, decoder, lambda _: Speed(slow), Crowding({})).bottleneck == ("rollout", "memory bandwidth")


def test_scoring_and_reference_overlap_where_they_do_not_share_a_gpu(grpo):
    shared, apart = (grpo_step(grpo, DECODER, lambda _: H100, Crowding({}, scoring_shared=s)) for s in (True, False))
    scoring, reference = shared.of("pictures") + shared.of("reward"), shared.of("reference")
    assert shared.seconds - apart.seconds == pytest.approx(min(scoring, reference))
    assert shared.seconds == pytest.approx(sum(shared.of(phase) for phase in shared.phases))
    assert shared.idle("reference") == pytest.approx(1 - reference / shared.seconds)


def test_drawing_ahead_hides_the_shorter_half_unless_engines_and_learner_share_gpus(grpo):
    ahead, together = of_grpo(grpo, ahead=1), Crowding({}, training_shared=True)
    one_by_one, beside = (grpo_step(config, DECODER, lambda _: H100, Crowding({})) for config in (grpo, ahead))
    assert beside.phases == one_by_one.phases
    drawing, weights = beside.of("rollout"), beside.of("weights")
    rest = one_by_one.seconds - drawing - weights
    assert beside.seconds == pytest.approx(max(drawing, rest) + weights)
    assert grpo_step(ahead, DECODER, lambda _: H100, together).seconds == one_by_one.seconds


def test_guidance_minibatches_and_sharing_cost_what_they_should(grpo):
    def step(config, **crowd):
        return grpo_step(config, DECODER, lambda _: H100, Crowding(crowd.get("crowd", {})))

    plain = step(grpo)
    guided = step(
        of_grpo(grpo, guidance_scale=6.0, engine=grpo.rollout.engine.model_copy(update={"max_concurrent": 224}))
    )
    assert 1.5 < guided.of("rollout") / plain.of("rollout") < 2 < guided.of("update") / plain.of("update") * 1.01
    # Old log-probs are one more forward pass beside the four of a training pass.
    alone = grpo.model_copy(update={"algorithm": grpo.algorithm.model_copy(update={"minibatches": 1})})
    assert plain.of("update") / step(alone).of("update") == pytest.approx(5 / 4, rel=0.02)
    halves = of_grpo(grpo, engine=grpo.rollout.engine.model_copy(update={"max_concurrent": 56}))
    assert plain.of("rollout") < step(halves).of("rollout") < 2 * plain.of("rollout")
    crowded = step(grpo, crowd={"rollout.engine.actors": 2})
    assert crowded.of("rollout") == pytest.approx(2 * plain.of("rollout"))


def test_pretraining_scales_until_gradients_take_over():
    config = load_config(SupervisedConfig, CONFIGS / "simplear_0.5b" / "pretrain.yaml", [])

    def seconds(ranks, micro_batch, nodes):
        learner = config.learner.model_copy(update={"actors": ActorsConfig(count=ranks)})
        data = config.data.model_copy(update={"micro_batch": micro_batch})
        counted = config.model_copy(update={"learner": learner, "data": data})
        return supervised_step(counted, published("simplear-0.5b", 512), Speed(GPUS["A100"]), nodes)

    one, eight, many = seconds(1, 8, 1), seconds(8, 8, 1), seconds(256, 1, 32)
    assert one.seconds / eight.seconds == pytest.approx(8, rel=0.05)
    assert eight.bottleneck == ("update", "arithmetic")
    assert many.phases["update"]["links"] == pytest.approx(2 * 255 / 256 * 551_140_224 * 4 / 25e9)
    assert one.seconds / many.seconds < 256


def test_the_cheapest_layout_fits_and_the_fastest_has_more_gpus(grpo):
    found = list(layouts(of_prompts(grpo, 7), DECODER, H100, gpus=16, gpus_per_node=8))
    assert {one.gpus for one in found} == {1, 3, 4, 5, 6, 7, 9, 10, 11, 12, 15}
    cheapest = min(found, key=lambda one: one.hours * one.gpus)
    fastest = min(found, key=lambda one: one.hours)
    assert (cheapest.gpus, cheapest.shared) == (1, True) and fastest.gpus >= 7
    assert fastest.hours < cheapest.hours < fastest.gpus * fastest.hours
    # On a small card learner, engine, reward and reference cannot share.
    small = layouts(of_prompts(grpo, 7), DECODER, Speed(GPUS["RTX 4090"]), 3, 8)
    assert [(one.gpus, one.shared) for one in small] == [(3, False)]


def test_the_layouts_are_those_that_a_run_takes(grpo):
    """Every learner has whole minibatches of whole groups, and passes of one size."""

    def learners(prompts, **values):
        found = layouts(of_prompts(grpo, prompts, **values), DECODER, H100, gpus=64, gpus_per_node=8)
        return {one.config.learner.actors.count for one in found}

    assert learners(32) == {1, 2, 4, 8, 16, 32}
    assert learners(32, minibatches=4) == {1, 2, 4, 8}
    assert learners(12, micro_batch=8) == {1, 2, 3, 6, 12}  # of 4 learners each would have 12 images


def measured(tmp_path, **values):
    device = {"bandwidth": 1e10, "float32": 1e11, "bfloat16": 5e10, "started": 2e-5, "replayed": 1e-5}
    found = {"command": "--policy 5m", "seconds": {"rollout": 3.0}, "factors": {"rollout": 1.5}}
    given = {"name": "CPU", "gpu": False, "threads": 2} | device | found
    file = tmp_path / "measured.json"
    file.write_text(Measured(**(given | values)).model_dump_json(), encoding="utf-8")
    return file


def test_a_file_of_measurements_replaces_the_assumptions(grpo, tmp_path):
    speed = read_measured(measured(tmp_path)).speed()
    assert speed.device.flops("float32") == 1e11 and speed.assumptions.started == 2e-5
    half = read_measured(measured(tmp_path)).speed(threads=1)
    assert half.device.flops("float32") == 0.5e11
    without = replace(speed, factors={})
    times = [grpo_step(grpo, DECODER, lambda _, s=s: s, Crowding({})) for s in (speed, without)]
    assert times[0].of("rollout") == pytest.approx(1.5 * times[1].of("rollout"))
    assert times[0].of("update") == times[1].of("update")
    gpu = read_measured(measured(tmp_path, name="NVIDIA H100 80GB HBM3", gpu=True)).speed()
    assert (gpu.gpu, gpu.device.memory, gpu.assumptions.vllm_step) == (True, 80, Assumptions().vllm_step)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "other.json").write_text('{"seconds": {}}', encoding="utf-8")
    for name in "other.json", "none.json":
        with pytest.raises(UserError, match=f"{name}: expected a file of .*timings.step --output"):
            read_measured(tmp_path / name)


def test_more_threads_are_faster(grpo):
    one, four = (grpo_step(grpo, DECODER, lambda _, n=n: on_cpu(n), Crowding({})).seconds for n in (1, 4))
    assert four < one < 4 * four


def test_gpus_are_known_by_the_names_that_cuda_gives_them():
    known = {
        "NVIDIA A100-SXM4-80GB": "A100",
        "NVIDIA A100-SXM4-40GB": "A100-SXM4-40GB",
        "NVIDIA A100-PCIE-40GB": "A100-PCIE-40GB",
        "NVIDIA A100 80GB PCIe": "A100 80GB PCIe",
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA H100 PCIe": "H100 PCIe",
        "NVIDIA GeForce RTX 4090": "RTX 4090",
        "NVIDIA L40S": "L40S",
        "NVIDIA L4": "L4",
        "NVIDIA L40": None,
        "Tesla T4": None,
    }
    assert {name: gpu_name(name) for name in known} == known


def test_a_table_of_gpus_that_hold_no_layout_alone(capsys):
    print_table("simplear-0.5b", "RTX 4090")
    table = capsys.readouterr().out.splitlines()
    assert {row.count("|") for row in table} == {9}
    assert table[2].count("does not fit") == 2
