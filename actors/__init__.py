"""The Ray actors: placement, names, health and metrics around the plain classes of simplear_rl.

Each actor wraps one plain class, which a test builds without Ray:

    actor            file          what it does                                        plain class
    RolloutActor     rollout.py    draws a group of images for each prompt             rollout: Engine (VllmEngine, ...)
    RewardActor      reward.py     decodes a group and scores it                       rewards: RewardScorer
    PythonRewardActor  isolated.py  a reward of the user's in its own environment      rewards: PythonReward
    ReferenceActor   reference.py  log-probs of a group under the frozen policy        policy: ReferencePolicy
    LearnerActor     learner.py    one rank of the learner                             learning: Learner
    Engine, Decoder  serving.py    draw and decode for the image API                   serving: Drawing, Pictures
    ScorerActor      scorer.py     judges the images of a prompt by a benchmark        benchmarks: BenchmarkScorer

The actors that encode images for `tokenize` are made by Ray Data (encoding.py), from `data/images.py`.

The drivers work with these:

    connection.py     joins or starts a cluster; a fault becomes one message that says what to set
    environment.py    threads and other environment variables of an actor
    placement.py      Stage: one placement group for all actors of a stage; starts them, ends them, names who was lost
    pool.py           Pool: actors of one role that share its work; extra ones may join and leave
    learner.py        LearnerGroup: all ranks, driven as one learner
    preferences.py    the pairs of a step of DPO: stored ones, or drawn and scored
    sampler.py        draws, scores and compares the groups of a step, in prompt order
    samples.py        the samples of each step: drawn at once, or while the learner takes the step before
    broadcast.py      Broadcast: the learner's weights to every engine, verified by checksum
    evaluation.py     Evaluation: a benchmark's scores while a stage trains
    supervised_evaluation.py  the same for pretraining and SFT, which have no rollout engines
    supervision.py    Heartbeat, and which lost actor is behind an error
    monitor.py        Monitored, the base of all actors: `ready`, `beat`, phases, metrics, log lines
    weight_member.py  WeightMember, the base of the actors in the process group that carries weights

An actor imports its plain class inside its constructor (the learner in `start`), not at the head of its file. Drivers
import the actors, and importing a command must load neither vllm nor deepspeed: `--help`, `--dry-run` and the driver
itself need neither, nor a GPU.
"""
