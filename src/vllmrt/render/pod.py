"""The pod: an init container that fetches the model onto the shared volume, and a server that only reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllmrt.errors import ConfigError
from vllmrt.render.budget import startup_seconds
from vllmrt.render.deployment import offered
from vllmrt.render.quoting import Text, kubernetes_literal

if TYPE_CHECKING:
    from pathlib import Path

    from vllmrt.render.deployment import Deployment

SECRET = "vllm-secrets"  # noqa: S105 - its name
CLAIM = "vllm-models"
HOME, _TMP, _SHM, _STORE = "/home/vllm", "/tmp", "/dev/shm", "/models"  # noqa: S108 - places in a container of its own
UID = 10001
_KEY = "VLLM_API_KEY"
_PERIOD = 10


def pod_spec(deployment: Deployment, image: str, *, gpus: int, size: int, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the specification of a pod.

    Args:
        deployment: what it runs.
        image: of both containers.
        gpus: that it gets.
        size: bytes of the model.
        more: further arguments for ``vllm serve``, in which Kubernetes expands ``$(NAME)``.

    Raises:
        ConfigError: the store cannot be mounted where the settings want it.
    """
    return {
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 60,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": UID,
            "fsGroup": UID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [_provision(deployment, image)],
        "containers": [_server(deployment, image, gpus=gpus, more=more) | _probes(size)],
        "volumes": [
            {"name": "models", "persistentVolumeClaim": {"claimName": CLAIM}},
            {"name": "home", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{2 * gpus}Gi"}},
        ],
    }


def everywhere(deployment: Deployment) -> str:
    """Return the address on which a container listens, since it has addresses of its own: all of them."""
    return "::" if deployment.settings.host.strip("[]") == "::" else "0.0.0.0"  # noqa: S104 - who may reach it is not decided here


def store(deployment: Deployment) -> str:
    """Return where the store is mounted.

    Raises:
        ConfigError: that is a place which cannot be.
    """
    path: Path | None = deployment.settings.models_dir
    mount = str(path or _STORE)
    if ":" in mount or any(f"{place}/".startswith(f"{mount.rstrip('/')}/") for place in (HOME, _TMP, _SHM)):
        raise ConfigError(f"the store cannot be mounted at {mount}", hint="set VLLM_MODELS_DIR to another path")
    return mount


def secret_key(name: str) -> str:
    """Return the key of a variable in the secret: ``api-key`` for ``VLLM_API_KEY``."""
    return name.removeprefix("VLLMRT_").removeprefix("VLLM_").replace("_", "-").lower()


def secrets(deployment: Deployment) -> dict[str, bool]:
    """Return the variables that come from the secret, and whether the pod may start without them."""
    names = dict.fromkeys([_KEY, *offered(deployment.settings), *deployment.secrets])
    return {name: name not in deployment.secrets for name in names}


def _provision(deployment: Deployment, image: str) -> dict[str, Any]:
    sources = deployment.variables.get("VLLM_MODEL_SOURCES")
    own = {"VLLM_MODEL_SOURCES": sources} if sources else {}
    references = [_reference(name, optional) for name, optional in secrets(deployment).items() if name != _KEY]
    return {
        "name": "provision",
        "image": Text(image),
        "command": ["vllmrt", "resolve"],
        "env": [*_environment(deployment, own), *references],
        "volumeMounts": [_mount("models", store(deployment)), *_writable()],
        "securityContext": _locked(),
    }


def _server(deployment: Deployment, image: str, *, gpus: int, more: tuple[str, ...]) -> dict[str, Any]:
    command = [kubernetes_literal(word) for word in deployment.command()]
    command += [Text(word) for word in (more if deployment.extra or not more else ("--", *more))]
    return {
        "name": "vllm",
        "image": Text(image),
        "command": ["vllmrt", *command],
        "env": [
            *_environment(deployment, _found_in_the_store(deployment)),
            _reference(_KEY, secrets(deployment)[_KEY]),
        ],
        "ports": [{"name": "http", "containerPort": deployment.settings.port}],
        "volumeMounts": [
            _mount("models", store(deployment)) | {"readOnly": True},
            *_writable(),
            _mount("shm", _SHM),
        ],
        "resources": {"limits": {"nvidia.com/gpu": str(gpus)}},
        "securityContext": _locked(),
        # a pod that ends gets requests until its endpoint is gone everywhere
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
    }


def _found_in_the_store(deployment: Deployment) -> dict[str, str]:
    """Let the server ask the store first: what was provisioned lies there, whatever source it came from."""
    if "VLLM_MODEL_SOURCES" not in deployment.variables:
        return {}
    others = [name for name in deployment.settings.model_sources if name != "local"]
    return {"VLLM_MODEL_SOURCES": ",".join(["local", *others])}


def _environment(deployment: Deployment, own: dict[str, str]) -> list[dict[str, Any]]:
    # some of vLLM's libraries ask who the user is, whom no passwd has
    values = {"HOME": HOME, "USER": "vllm", "VLLM_HOST": everywhere(deployment), "VLLM_MODELS_DIR": store(deployment)}
    values |= deployment.model | deployment.elsewhere("host", "model_sources") | own
    return [{"name": name, "value": kubernetes_literal(value)} for name, value in values.items()]


def _reference(name: str, optional: bool) -> dict[str, Any]:  # noqa: FBT001 - as Kubernetes calls it
    key = {"name": SECRET, "key": secret_key(name), "optional": optional}
    return {"name": name, "valueFrom": {"secretKeyRef": key}}


def _mount(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "mountPath": Text(path)}


def _writable() -> list[dict[str, Any]]:
    return [_mount("home", HOME), _mount("tmp", _TMP)]


def _locked() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def _probes(size: int) -> dict[str, Any]:
    healthy = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": _PERIOD, "timeoutSeconds": 5}
    return {
        "startupProbe": healthy | {"failureThreshold": -(-startup_seconds(size) // _PERIOD)},
        "readinessProbe": healthy | {"failureThreshold": 3},
        "livenessProbe": healthy | {"failureThreshold": 3},
    }
