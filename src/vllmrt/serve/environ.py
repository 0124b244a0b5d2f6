"""The environment of the engine, and who could reach it: pure functions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vllmrt.errors import ServeRefused
from vllmrt.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllmrt.settings import Var

KNOWN_KEY = "sk-vllm-local-dev"

# The variables that Kubernetes makes of a Service named vllm or vllm-<name>:
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE = re.compile(
    r"VLLM_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:ADDR|PORT|PROTO))?)"
)
_SERVICE_PORT = re.compile(r"VLLM_(?:\w+_)?PORT")
_SERVICE_URI = re.compile(r"(?:tcp|udp|sctp)://")
_OF_THE_MANAGER = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})
"""vllmrt tells the service manager of the server, sd_notify(3); two that do would contradict each other."""
_LOOPBACK = re.compile(r"127(?:\.\d{1,3}){1,3}")


def child_environment(environ: Mapping[str, str], settings: Settings, *, offline: bool = True) -> dict[str, str]:
    """Return the environment in which vLLM runs.

    vLLM warns about every ``VLLM_*`` variable that it does not define, and reads ``VLLM_PORT`` as an internal port that
    several sockets count up from. So the names of our settings are taken out, except those that vLLM defines with the
    same meaning; so are Kubernetes' service links. Everything else is passed on.

    Args:
        environ: the environment that vllmrt was started in.
        settings: the API key, the log level, the metrics directory and the GPUs come from here, whatever set them.
        offline: True keeps Hugging Face's libraries off the network: the model is complete.
    """
    ours = _our_names()
    child = {name: value for name, value in environ.items() if not _is_removed(name, value, ours)}
    decided = {
        "HF_HUB_OFFLINE": "1" if offline else None,
        "VLLM_API_KEY": settings.api_key,
        "VLLM_LOGGING_LEVEL": settings.logging_level,
        "PROMETHEUS_MULTIPROC_DIR": settings.prometheus_multiproc_dir,
        "CUDA_VISIBLE_DEVICES": settings.cuda_visible_devices,
    }
    child.update((name, str(value)) for name, value in decided.items() if value is not None)
    return child


def exposure_warnings(settings: Settings) -> list[str]:
    """Return what is risky about the address and the key that the server gets (DESIGN.md §5).

    Raises:
        ServeRefused: it is risky, and `Settings.require_api_key` is set.
    """
    if is_loopback(settings.host) or settings.api_key not in {None, "", KNOWN_KEY}:
        return []
    key = f"with the well-known API key {KNOWN_KEY}" if settings.api_key else "without an API key"
    message = f"serving on {settings.host} {key}: whoever reaches the port can use the model"
    if settings.require_api_key:
        raise ServeRefused(message, hint="set VLLM_API_KEY to a key of your own, or VLLM_HOST to 127.0.0.1")
    return [f"{message}; set VLLM_API_KEY to a key of your own"]


def is_service_link(name: str, value: str) -> bool:
    """Tell whether a variable is one that Kubernetes makes of a Service named vllm or vllm-<name>."""
    if _SERVICE.fullmatch(name):
        return True
    return _SERVICE_PORT.fullmatch(name) is not None and _SERVICE_URI.match(value) is not None


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can connect: 127.0.0.0/8, ::1 or localhost."""
    if ":" not in host:
        return host.lower() == "localhost" or _LOOPBACK.fullmatch(host) is not None
    import ipaddress

    try:
        address = ipaddress.IPv6Address(host.strip("[]"))
    except ValueError:
        return False
    return address.is_loopback or (address.ipv4_mapped is not None and address.ipv4_mapped.is_loopback)


def _our_names() -> frozenset[str]:
    """Return the names of our settings that mean nothing to vLLM, and the one that only stands in env files."""
    variables: list[Var] = [annotation.__metadata__[-1] for annotation in Settings.__annotations__.values()]
    settings = (var.old for var in variables if var.old and var.old.startswith("VLLM_") and not var.engine)
    return frozenset((*settings, "VLLM_MODEL_PATH"))


def _is_removed(name: str, value: str, ours: frozenset[str]) -> bool:
    return name.startswith(("VLLMRT_", "_VLLM_")) or name in ours | _OF_THE_MANAGER or is_service_link(name, value)
