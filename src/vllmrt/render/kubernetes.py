"""The objects of a deployment in Kubernetes: names and files as in the reference (chapter "Kubernetes deployment")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllmrt.errors import ConfigError
from vllmrt.render.budget import rollout_seconds, volume_gib
from vllmrt.render.pod import CLAIM, SECRET, pod_spec, secret_key, secrets
from vllmrt.render.quoting import yaml_documents

if TYPE_CHECKING:
    from vllmrt.render.deployment import Deployment

NAME, SERVICE = "vllm", "vllm-server"
_LABELS = {"app.kubernetes.io/name": NAME}
_LEADER = {**_LABELS, "app.kubernetes.io/component": "leader"}
_WORKER = {**_LABELS, "app.kubernetes.io/component": "worker"}
_HEADER = """\
# Written by vllmrt render k8s; docs/kubernetes.md explains it.
"""
_SECRETS = """\
# What is secret is not here. Make it once, with the keys that you need; those marked * have to be there:
#   kubectl -n {namespace} create secret generic {secret} --from-file=KEY=FILE …
#   KEY: {keys}
"""


def manifests(deployment: Deployment, *, image: str, size: int, nodes: int) -> dict[str, str]:
    """Return the files, in the order in which they are to be applied.

    Args:
        deployment: what runs.
        image: with vllm and vllmrt.
        size: bytes of the model.
        nodes: among which the model is divided; more than one makes a LeaderWorkerSet.

    Raises:
        ConfigError: the GPUs cannot be divided among the nodes, or the store cannot be mounted.
    """
    gpus = _gpus_of_a_node(deployment, nodes)
    if nodes == 1:
        name, server = "deployment.yaml", _deployment(deployment, image, gpus=gpus, size=size)
    else:
        name, server = "leaderworkerset.yaml", _set(deployment, image, gpus=gpus, size=size, nodes=nodes)
    return {
        "namespace.yaml": _HEADER + yaml_documents([_namespace()]),
        "pvc.yaml": _HEADER + yaml_documents([_claim(size)]),
        name: _HEADER + _about_secrets(deployment) + yaml_documents([server]),
        "service.yaml": _HEADER + yaml_documents([_service(deployment, nodes)]),
    }


def _about_secrets(deployment: Deployment) -> str:
    keys = [secret_key(name) + ("" if optional else "*") for name, optional in secrets(deployment).items()]
    return _SECRETS.format(namespace=NAME, secret=SECRET, keys=", ".join(keys))


def _gpus_of_a_node(deployment: Deployment, nodes: int) -> int:
    tensor, pipeline = deployment.settings.tensor_parallel_size, deployment.settings.pipeline_parallel_size
    gpus, left = divmod(tensor * pipeline, nodes)
    if left or not gpus:
        raise ConfigError(
            f"{tensor} x {pipeline} GPUs cannot be divided among {nodes} nodes",
            hint="VLLM_TENSOR_PARALLEL_SIZE x VLLM_PIPELINE_PARALLEL_SIZE has to be a multiple of the nodes",
        )
    return gpus


def _namespace() -> dict[str, Any]:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAME, "labels": labels}}


def _claim(size: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(CLAIM),
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": f"{volume_gib(size)}Gi"}},
        },
    }


def _service(deployment: Deployment, nodes: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(SERVICE),
        "spec": {
            "type": "ClusterIP",
            "selector": _LABELS if nodes == 1 else _LEADER,
            "ports": [{"name": "http", "port": deployment.settings.port, "targetPort": "http"}],
        },
    }


def _deployment(deployment: Deployment, image: str, *, gpus: int, size: int) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(NAME),
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "progressDeadlineSeconds": rollout_seconds(size),
            "selector": {"matchLabels": _LABELS},
            "template": {
                "metadata": {"labels": _LABELS},
                "spec": pod_spec(deployment, image, gpus=gpus, size=size),
            },
        },
    }


def _set(deployment: Deployment, image: str, *, gpus: int, size: int, nodes: int) -> dict[str, Any]:
    """Make a leader and its workers, of which each gets a part of the model by vLLM's own multi-node mode."""
    place = ("--node-rank", "$(LWS_WORKER_INDEX)", "--master-addr", "$(LWS_LEADER_ADDRESS)")
    flags = ("--distributed-executor-backend", "mp", "--nnodes", str(nodes), *place)
    leader = pod_spec(deployment, image, gpus=gpus, size=size, more=flags)
    worker = pod_spec(deployment, image, gpus=gpus, size=size, more=(*flags, "--headless"))
    # a worker answers no request, so there is nothing to ask it; when one ends, the whole group starts anew
    for part in ("startupProbe", "readinessProbe", "livenessProbe", "ports", "lifecycle"):
        del worker["containers"][0][part]
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": _metadata(NAME),
        "spec": {
            "replicas": 1,
            "startupPolicy": "LeaderCreated",
            "leaderWorkerTemplate": {
                "size": nodes,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": {"metadata": {"labels": _LEADER}, "spec": leader},
                "workerTemplate": {"metadata": {"labels": _WORKER}, "spec": worker},
            },
        },
    }


def _metadata(name: str) -> dict[str, Any]:
    return {"name": name, "namespace": NAME, "labels": _LABELS}
