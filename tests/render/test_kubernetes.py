"""The manifests: valid for Kubernetes, and what operators ask for is in them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import yaml
from hypothesis import given, reject
from hypothesis import settings as bounds
from hypothesis import strategies as st
from podkit import environment, expanded
from render.kit import describe, documents, settings

from vllmrt.errors import ConfigError
from vllmrt.identity import check_name
from vllmrt.render import budget
from vllmrt.render.kubernetes import manifests

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its resources are read by a function that Python deprecates
    import kubernetes_validate

# the oldest that its maintainers still mended when this was written, and the newest that the library knows
VERSIONS = ["1.30", kubernetes_validate.latest_version()]
GB = 1_000_000_000


def rendered(*, nodes: int = 1, size: int = 15 * GB, extra: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    files = manifests(describe(settings(**fields), extra), image="vllmrt:0.1.0", size=size, nodes=nodes)
    return documents(files)


def pods(objects: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates, with the kind that validates them."""
    if "Deployment" in objects:
        return [objects["Deployment"]["spec"]["template"]]
    template = objects["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]
    return [template["leaderTemplate"], template["workerTemplate"]]


MANY = {"tensor_parallel_size": 8, "pipeline_parallel_size": 2}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        **MANY,
        "r2_bucket": "b",
        "api_key": "key-1",
        "hf_token": "token-1",
        "model_url": "s3://u@x",
        "model_sources": ("r2", "fsspec"),
        "max_model_len": 8192,
        "extra": ("--chat-template", "{% a %}\n$(HOME)"),
    },
    "nodes": {**MANY, "nodes": 2},
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_the_schemas_of_kubernetes_take_it(case: str, version: str) -> None:
    objects = rendered(**CASES[case])
    for template in pods(objects):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
        kubernetes_validate.validate(pod, version, strict=True)
    known = [one for kind, one in objects.items() if kind != "LeaderWorkerSet"]
    assert len(known) >= 3
    for one in known:
        kubernetes_validate.validate(one, version, strict=True)


def test_a_fault_would_be_seen() -> None:
    deployment = rendered()["Deployment"]
    deployment["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("case", CASES)
def test_the_standard_of_restricted_pods_is_kept(case: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, which the namespace enforces."""
    objects = rendered(**CASES[case])
    assert objects["Namespace"]["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    for template in pods(objects):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {key for volume in spec["volumes"] for key in volume} <= {"name", "emptyDir", "persistentVolumeClaim"}
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        for container in spec["initContainers"] + spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }


def test_what_operators_ask_for() -> None:
    objects = rendered()
    spec = objects["Deployment"]["spec"]
    assert spec["strategy"] == {"type": "Recreate"}
    pod = spec["template"]["spec"]
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False
    shm = next(volume for volume in pod["volumes"] if volume["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    (init,), (server,) = pod["initContainers"], pod["containers"]
    assert init["command"] == ["vllmrt", "resolve"]
    assert server["command"] == ["vllmrt", "up"]
    mounts = {mount["name"]: mount for mount in server["volumeMounts"]}
    assert mounts["models"]["readOnly"] is True
    assert {mount["mountPath"] for mount in init["volumeMounts"]} == {"/models", "/home/vllm", "/tmp"}
    assert server["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    probes = {server[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert probes == {"/health"}


def test_the_names_fit_each_other() -> None:
    objects = rendered(port=8001)
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [objects["Service"]["spec"]["selector"], objects["Deployment"]["spec"]["selector"]["matchLabels"]]
    assert all(selector.items() <= labels.items() for selector in selectors)
    (server,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert objects["Service"]["spec"]["ports"] == [{"name": "http", "port": 8001, "targetPort": "http"}]
    assert server["ports"] == [{"name": "http", "containerPort": 8001}]
    assert environment(server)["VLLM_PORT"] == "8001"
    claim = next(volume for volume in pods(objects)[0]["spec"]["volumes"] if volume["name"] == "models")
    assert claim["persistentVolumeClaim"]["claimName"] == objects["PersistentVolumeClaim"]["metadata"]["name"]
    spaces = {one["metadata"].get("namespace", one["metadata"]["name"]) for one in objects.values()}
    assert spaces == {"vllm"}


@pytest.mark.parametrize(("host", "inside"), [("127.0.0.1", "0.0.0.0"), ("10.1.2.3", "0.0.0.0"), ("::", "::")])
def test_a_pod_listens_on_all_its_addresses(host: str, inside: str) -> None:
    (server,) = pods(rendered(host=host))[0]["spec"]["containers"]
    assert environment(server)["VLLM_HOST"] == inside


def test_a_server_needs_no_credential_of_a_source() -> None:
    (pod,) = pods(rendered(r2_bucket="b", hf_token="t-canary", model_url="s3://x", api_key="k-canary"))
    (init,), (server,) = pod["spec"]["initContainers"], pod["spec"]["containers"]
    refs = [
        {one["name"]: one["valueFrom"]["secretKeyRef"] for one in container["env"] if "valueFrom" in one}
        for container in (init, server)
    ]
    assert refs[0].keys() == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "VLLMRT_MODEL_URL"}
    assert refs[1].keys() == {"VLLM_API_KEY"}
    assert {name: ref["optional"] for name, ref in (refs[0] | refs[1]).items()} == {
        "AWS_ACCESS_KEY_ID": True,
        "AWS_SECRET_ACCESS_KEY": True,
        "HF_TOKEN": False,
        "VLLMRT_MODEL_URL": False,
        "VLLM_API_KEY": False,
    }
    assert {ref["name"] for ref in (refs[0] | refs[1]).values()} == {"vllm-secrets"}
    assert refs[1]["VLLM_API_KEY"]["key"] == "api-key"
    assert refs[0]["HF_TOKEN"]["key"] == "hf-token"


def test_credentials_of_a_source_that_is_not_asked_are_not_offered() -> None:
    (pod,) = pods(rendered(model_sources=("local",), r2_bucket="b"))
    assert not [one for one in pod["spec"]["initContainers"][0]["env"] if "valueFrom" in one]


def test_the_server_asks_the_store_first() -> None:
    (pod,) = pods(rendered(model_sources=("r2", "local", "hf-hub")))
    assert environment(pod["spec"]["initContainers"][0])["VLLM_MODEL_SOURCES"] == "r2,local,hf-hub"
    assert environment(pod["spec"]["containers"][0])["VLLM_MODEL_SOURCES"] == "local,r2,hf-hub"


def test_a_path_of_this_machine_is_left_out() -> None:
    given = settings(vllm="/opt/vllm", config_file="/etc/x.yaml", hf_home="/h", gpu_devices=("0",), flox_env="/f")
    deployment = describe(given, [])
    assert deployment.of_this_machine == ("HF_HOME", "VLLMRT_VLLM", "VLLM_CONFIG_FILE", "VLLM_GPU_DEVICES")
    text = "".join(manifests(deployment, image="i", size=GB, nodes=1).values())
    assert not [word for word in ("/opt/vllm", "/etc/x", "HF_HOME", "GPU_DEVICES", "FLOX") if word in text]


@pytest.mark.parametrize("path", ["/", "/tmp", "/home", "/home/vllm", "/dev", "/dev/shm", "/a:b"])
def test_a_store_that_cannot_be_mounted_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="cannot be mounted"):
        rendered(models_dir=path)


def test_a_store_of_another_name_is_mounted_there() -> None:
    (pod,) = pods(rendered(models_dir="/srv/models"))
    for container in pod["spec"]["initContainers"] + pod["spec"]["containers"]:
        assert container["volumeMounts"][0]["mountPath"] == "/srv/models"
        assert environment(container)["VLLM_MODELS_DIR"] == "/srv/models"


# what the documentation says of sizes


@pytest.mark.parametrize(
    ("gigabytes", "seconds", "gib"), [(0.005, 301, 10), (2.3, 346, 10), (16, 620, 31), (812, 16540, 1514)]
)
def test_the_budget_follows_the_size(gigabytes: float, seconds: int, gib: int) -> None:
    size = round(gigabytes * GB)
    objects = rendered(size=size)
    probe = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
    assert budget.startup_seconds(size) == seconds
    assert seconds <= probe["failureThreshold"] * probe["periodSeconds"] < seconds + probe["periodSeconds"]
    assert objects["PersistentVolumeClaim"]["spec"]["resources"]["requests"]["storage"] == f"{gib}Gi"
    assert objects["Deployment"]["spec"]["progressDeadlineSeconds"] == seconds + 600 + -(-size // 10_000_000)


# more than one node


def test_a_group_of_nodes_is_a_leader_worker_set() -> None:
    """https://lws.sigs.k8s.io/docs/reference/leaderworkerset.v1/ names the fields."""
    objects = rendered(nodes=2, **MANY, extra=("--seed", "1"))
    group = objects["LeaderWorkerSet"]
    assert "Deployment" not in objects
    assert group["apiVersion"] == "leaderworkerset.x-k8s.io/v1"
    assert group["spec"].keys() <= {
        "replicas",
        "leaderWorkerTemplate",
        "rolloutStrategy",
        "startupPolicy",
        "networkConfig",
    }
    template = group["spec"]["leaderWorkerTemplate"]
    assert template.keys() == {"size", "restartPolicy", "leaderTemplate", "workerTemplate"}
    assert (template["size"], template["restartPolicy"]) == (2, "RecreateGroupOnPodRestart")
    leader, worker = (template[f"{role}Template"]["spec"]["containers"][0] for role in ("leader", "worker"))
    assert leader["resources"]["limits"] == worker["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert not worker.keys() & {"startupProbe", "readinessProbe", "livenessProbe", "ports"}
    labels = template["leaderTemplate"]["metadata"]["labels"]
    assert objects["Service"]["spec"]["selector"].items() <= labels.items()
    assert (
        not objects["Service"]["spec"]["selector"].items() <= template["workerTemplate"]["metadata"]["labels"].items()
    )


@pytest.mark.parametrize(("role", "rank", "last"), [("leader", "0", []), ("worker", "1", ["--headless"])])
@pytest.mark.parametrize("extra", [(), ("--seed", "1")], ids=["alone", "with others"])
def test_each_node_knows_its_place(role: str, rank: str, last: list[str], extra: tuple[str, ...]) -> None:
    template = rendered(nodes=2, **MANY, extra=extra)["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]
    container = template[f"{role}Template"]["spec"]["containers"][0]
    injected = {"LWS_WORKER_INDEX": rank, "LWS_LEADER_ADDRESS": "vllm-0.vllm.vllm"}
    command = [expanded(word, injected) for word in container["command"]]
    place = ["--nnodes", "2", "--node-rank", rank, "--master-addr", "vllm-0.vllm.vllm"]
    assert command == ["vllmrt", "up", "--", *extra, "--distributed-executor-backend", "mp", *place, *last]


@pytest.mark.parametrize(("tensor", "pipeline", "nodes"), [(1, 1, 2), (8, 1, 3), (4, 2, 16)])
def test_gpus_that_cannot_be_divided_are_an_error(tensor: int, pipeline: int, nodes: int) -> None:
    with pytest.raises(ConfigError, match="cannot be divided"):
        rendered(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline, nodes=nodes)


# hostile values

PRINTABLE = st.text(st.characters(codec="utf-8").filter(str.isprintable), min_size=1, max_size=40)


@bounds(max_examples=50, deadline=None)
@given(name=PRINTABLE, word=PRINTABLE, extra=PRINTABLE)
def test_what_a_container_is_given_is_what_was_put_in(name: str, word: str, extra: str) -> None:
    try:
        check_name(name, "name")
        deployment = describe(settings(model_id=f"org/{name}", served_model_name=word), ["--flag", extra])
    except ConfigError:
        reject()
    files = manifests(deployment, image="i", size=GB, nodes=1)
    (pod,) = pods(documents(files))
    (server,) = pod["spec"]["containers"]
    assert environment(server) | deployment.model == environment(server)
    assert environment(server).get("VLLM_SERVED_MODEL_NAME") == word
    assert expanded(server["command"][-1], environment(server)) == extra
    assert all(len(list(yaml.safe_load_all(text))) == 1 for text in files.values())
