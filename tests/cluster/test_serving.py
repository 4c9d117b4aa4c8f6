"""serve.yaml and kuberay-service.yaml: what Ray Serve and KubeRay accept, and nobody reaches without a key."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from simplear_rl.config.serving import ServeConfig

SCHEMA = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def service_and_policy(folder):
    return list(yaml.safe_load_all((folder / "kuberay-service.yaml").read_text(encoding="utf-8")))


@pytest.fixture
def deployed(folder, service_and_policy):
    """The Serve configurations of both files."""
    texts = (folder / "serve.yaml").read_text(encoding="utf-8"), service_and_policy[0]["spec"]["serveConfigV2"]
    return [yaml.safe_load(text) for text in texts]


def test_documents_fit_the_schema(service_and_policy):
    assert [document["kind"] for document in service_and_policy] == ["RayService", "NetworkPolicy"]
    for document in service_and_policy:
        jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(document)))


def test_serve_accepts_the_applications(deployed):
    for values in deployed:
        (application,) = ServeDeploySchema.model_validate(values).applications
        assert application.import_path == "actors.serving:application"
        config = ServeConfig.model_validate(application.args)
        assert values["http_options"] == {"host": config.host, "port": config.port}


def test_what_leaves_loopback_has_a_key(deployed, service_and_policy):
    assert [ServeConfig.model_validate(v["applications"][0]["args"]).on_loopback for v in deployed] == [True, False]
    cluster = service_and_policy[0]["spec"]["rayClusterConfig"]
    for group in cluster["headGroupSpec"], *cluster["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        assert [e["valueFrom"]["secretKeyRef"]["key"] for e in container["env"] if e["name"] == "SIMPLEAR_API_KEY"]
    ports = [source["ports"][0]["port"] for source in service_and_policy[1]["spec"]["ingress"] if "ports" in source]
    assert ports == [8265, 8000]


def test_the_replicas_fit_the_workers(deployed, service_and_policy):
    config = ServeConfig.model_validate(deployed[1]["applications"][0]["args"])
    (workers,) = service_and_policy[0]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    gpus = sum(actors.count * actors.gpus for actors in (config.engine.actors, config.decoders))
    assert gpus <= workers["replicas"] and config.engine.actors.count == workers["replicas"]
