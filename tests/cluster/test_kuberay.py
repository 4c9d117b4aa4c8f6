"""kuberay-cluster.yaml and kuberay-job.yaml against a strict schema of the fields they use, and against each other."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import GrpoConfig

SCHEMA = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SHARED_FOLDER = "/home/ray/simplear_runs"
NODES = "replicas", "minReplicas", "maxReplicas"


@pytest.fixture
def cluster(folder: Path) -> dict[str, Any]:
    return next(yaml.safe_load_all((folder / "kuberay-cluster.yaml").read_text()))


@pytest.fixture
def cluster_policy(folder: Path) -> dict[str, Any]:
    return list(yaml.safe_load_all((folder / "kuberay-cluster.yaml").read_text()))[1]


@pytest.fixture
def job_and_policy(folder: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((folder / "kuberay-job.yaml").read_text()))


@pytest.fixture
def specs(cluster, job_and_policy) -> list[dict[str, Any]]:
    return [cluster["spec"], job_and_policy[0]["spec"]["rayClusterSpec"]]


def groups(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def mappings(value: Any) -> list[dict[str, Any]]:
    """Every mapping in a document, the document first."""
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value] * isinstance(value, dict) + [found for part in parts for found in mappings(part)]


def test_documents_fit_the_schema(cluster, cluster_policy, job_and_policy):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    documents = [cluster, cluster_policy, *job_and_policy]
    assert [document["kind"] for document in documents] == ["RayCluster", "NetworkPolicy", "RayJob", "NetworkPolicy"]
    for document in documents:
        VALIDATOR.validate(document)


def test_an_unknown_key_is_refused_wherever_names_are_fixed(cluster, job_and_policy):
    free = {"labels", "matchLabels", "nodeSelector", "rayStartParams"}  # their keys are the user's
    for document in cluster, *job_and_policy:
        document = copy.deepcopy(json.loads(json.dumps(document)))  # no part shared, as YAML aliases are
        skip = [id(m[key]) for m in mappings(document) for key in free & m.keys()]
        places = [place for place in mappings(document) if id(place) not in skip]
        assert len(places) > 5
        for place in places:
            place["replica"] = 1
            assert not VALIDATOR.is_valid(document), place
            del place["replica"]
            VALIDATOR.validate(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["authOptions", "mode"], "disabled"),
        (["authOptions", "secretName"], None),
        (["headGroupSpec", "serviceType"], "LoadBalancer"),
        (["headGroupSpec", "rayStartParams", "num-cpus"], 0),
        (["workerGroupSpecs", 0, "replicas"], "4"),
        (["workerGroupSpecs", 0, "template", "spec", "securityContext", "runAsNonRoot"], False),
    ],
)
def test_a_bad_value_is_refused(cluster, path, value):
    place = cluster["spec"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert not VALIDATOR.is_valid(cluster)


def test_the_job_runs_on_the_same_cluster_except_for_its_dashboard(cluster, job_and_policy):
    ours, theirs = cluster["spec"], job_and_policy[0]["spec"]["rayClusterSpec"]
    for group, other in zip(groups(ours), groups(theirs), strict=True):
        assert group["template"].pop("metadata") != other["template"].pop("metadata")
    assert [theirs["workerGroupSpecs"][0].pop(key) for key in NODES] == [1, 1, 1]
    assert [ours["workerGroupSpecs"][0].pop(key) for key in NODES] == [4, 4, 4]
    assert ours["headGroupSpec"]["rayStartParams"].pop("dashboard-host") == "127.0.0.1"
    assert theirs["headGroupSpec"]["rayStartParams"].pop("dashboard-host") == "0.0.0.0"
    assert ours == theirs


def test_only_the_run_itself_and_the_operator_reach_the_jobs_pods(job_and_policy):
    job, policy = job_and_policy
    labels = [group["template"]["metadata"]["labels"] for group in groups(job["spec"]["rayClusterSpec"])]
    own = policy["spec"]["podSelector"]["matchLabels"]
    assert labels == [own, own]
    inside, operator = policy["spec"]["ingress"]
    assert inside == {"from": [{"podSelector": {"matchLabels": own}}]}
    assert [port["port"] for port in operator["ports"]] == [8265]
    # One entry: both selectors must hold. Two entries would admit every pod of every namespace.
    assert [sorted(source) for source in operator["from"]] == [["namespaceSelector", "podSelector"]]


def test_only_the_clusters_pods_reach_each_other(cluster, cluster_policy):
    own = cluster_policy["spec"]["podSelector"]["matchLabels"]
    assert [group["template"]["metadata"]["labels"] for group in groups(cluster["spec"])] == [own, own]
    assert cluster_policy["spec"]["ingress"] == [{"from": [{"podSelector": {"matchLabels": own}}]}]


def test_ray_is_the_locked_version(specs, ray_version):
    for spec in specs:
        assert spec["rayVersion"] == ray_version


def test_workers_of_eight_gpus_and_a_head_without(specs):
    for spec in specs:
        head, workers = (group["template"]["spec"]["containers"][0]["resources"] for group in groups(spec))
        assert "nvidia.com/gpu" not in head["limits"]
        assert (
            spec["headGroupSpec"]["rayStartParams"] | {"num-cpus": "0", "num-gpus": "0"}
            == (spec["headGroupSpec"]["rayStartParams"])
        )
        assert workers["limits"] == workers["requests"]  # guaranteed: never evicted for another pod
        assert workers["limits"]["nvidia.com/gpu"] == "8"


def test_every_pod_has_the_runs_and_ample_shared_memory(specs):
    for group in (group for spec in specs for group in groups(spec)):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        volumes = {volume.pop("name"): volume for volume in copy.deepcopy(pod["volumes"])}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts[SHARED_FOLDER]["persistentVolumeClaim"]["claimName"].startswith("FILL_IN")
        shared, memory = mounts["/dev/shm"]["emptyDir"], container["resources"]["limits"]["memory"]
        assert shared["medium"] == "Memory"
        assert 16 <= int(shared["sizeLimit"].removesuffix("Gi")) <= int(memory.removesuffix("Gi")) / 4


def test_the_job_runs_grpo_and_frees_the_gpus(job_and_policy):
    spec = job_and_policy[0]["spec"]
    assert spec["entrypoint"] == "python -m simplear_rl.grpo --config configs/simplear_0.5b/grpo.yaml"
    config = load_config(GrpoConfig, CONFIGS / "simplear_0.5b" / "grpo.yaml", [])
    pools = [config.rollout.engine.actors, config.reward.actors, config.reference, config.learner.actors]
    assert sum(pool.count * pool.gpus for pool in pools) == pytest.approx(8)  # the GPUs of its one node
    assert spec["shutdownAfterJobFinishes"]
