"""Units: a service for systemd, and a container for podman's quadlet (systemd.exec(5), podman-systemd.unit(5))."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from vllmrt.errors import ConfigError
from vllmrt.render.pod import HOME, UID, everywhere, secret_key, store
from vllmrt.render.quoting import unit_word

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from vllmrt.render.deployment import Deployment

_SECRETS = "/etc/vllmrt/vllm.env"
_SERVICE = """\
# Written by vllmrt render systemd, for /etc/systemd/system/vllm.service; docs/systemd.md explains it.
# What is secret is not here: {secrets} (mode 600) has it, with lines such as VLLM_API_KEY=….
[Unit]
Description=vLLM serving {model}
Wants=network-online.target
After=network-online.target

[Service]
# it has started when it answers; the model may have to be fetched first
Type=notify
NotifyAccess=all
TimeoutStartSec=infinity
ExecStart={command}
{environment}
EnvironmentFile={optional}{secrets}
User=vllmrt
DynamicUser=yes
StateDirectory=vllmrt
CacheDirectory=vllmrt
{paths}NoNewPrivileges=yes
KillMode=mixed
TimeoutStopSec=60
# SIGTERM while the model is fetched
SuccessExitStatus=143
Restart=on-failure
RestartSec=10
# what starting again does not mend: a damaged model, a refused launch, a wrong command line
RestartPreventExitStatus=11 20 64

[Install]
WantedBy=multi-user.target
"""
_CONTAINER = """\
# Written by vllmrt render quadlet, for /etc/containers/systemd/vllm.container; docs/systemd.md explains it.
# What is secret is not here: podman secret create NAME FILE. Names: {names}
[Unit]
Description=vLLM serving {model}
Wants=network-online.target
After=network-online.target

[Container]
Image={image}
ContainerName=vllm
Entrypoint=vllmrt
Exec={command}
{environment}
{secrets}User={uid}
Group={uid}
AddDevice=nvidia.com/gpu=all
PublishPort={port}
Volume={store}
Volume=vllm-home:{home}:U
ReadOnly=true
ShmSize={shm}g
NoNewPrivileges=true
DropCapability=all
StopTimeout=60

[Service]
# the image may have to be fetched
TimeoutStartSec=infinity
SuccessExitStatus=143
Restart=on-failure
RestartSec=10
RestartPreventExitStatus=11 20 64

[Install]
WantedBy=multi-user.target
"""


def service(deployment: Deployment, executable: Path, engine: Path | None) -> dict[str, str]:
    """Return the unit of a systemd service.

    Args:
        deployment: what it runs.
        executable: vllmrt on this machine.
        engine: vllm on this machine, where the service would not find it by itself.

    Raises:
        ConfigError: a path that no unit can name.
    """
    places = {"HOME": "%C/vllmrt", "VLLM_MODELS_DIR": "%S/vllmrt"}
    # a service is no part of the Flox environment in which this may run
    own = deployment.without("flox_env", "flox_env_project", "flox_env_cache")
    given = deployment.model | own | ({"VLLMRT_VLLM": str(engine)} if engine else {})
    specified = [f"{name}={value}" for name, value in places.items() if name not in given]
    text = _SERVICE.format(
        model=deployment.request.identity.replace("%", "%%"),
        command=" ".join([_executable(executable), *_command(deployment)]),
        environment="\n".join(f"Environment={word}" for word in [*specified, *_assignments(given)]),
        secrets=_SECRETS,
        optional="" if deployment.secrets else "-",
        # one that is not there yet is passed over: a service that needs it says so itself
        paths="".join(f"ReadWritePaths={unit_word(f'-{path}')}\n" for path in _written(deployment)),
    )
    return {"vllm.service": text}


def container(deployment: Deployment, image: str) -> dict[str, str]:
    """Return the unit of a container, from which podman makes a systemd service.

    Raises:
        ConfigError: an address to which podman can publish no port, or a path that no volume can have.
    """
    inside = {"HOME": HOME, "USER": "vllm", "VLLM_HOST": everywhere(deployment), "VLLM_MODELS_DIR": "/models"}
    given = inside | deployment.model | deployment.elsewhere("host")
    variables = dict.fromkeys([*deployment.secrets, *deployment.credentials])
    named = [f"vllm-{secret_key(name)}" for name in variables]
    secrets = zip(named, variables, strict=True)
    outside = store(deployment) if deployment.settings.models_dir else None
    text = _CONTAINER.format(
        model=deployment.request.identity.replace("%", "%%"),
        image=image.replace("%", "%%"),
        names=", ".join(named) or "none",
        command=" ".join(_command(deployment)),
        environment="\n".join(f"Environment={word}" for word in _assignments(given, in_command=True)),
        secrets="".join(f"Secret={secret},type=env,target={name}\n" for secret, name in secrets),
        uid=UID,
        port=_published(deployment),
        store=f"{_volume(outside)}:/models" if outside else "vllm-models:/models:U",
        home=HOME,
        shm=2 * deployment.settings.tensor_parallel_size * deployment.settings.pipeline_parallel_size,
    )
    return {"vllm.container": text}


def _command(deployment: Deployment) -> list[str]:
    return [unit_word(word, in_command=True) for word in deployment.command()]


def _assignments(values: Mapping[str, str], *, in_command: bool = False) -> Iterable[str]:
    return (unit_word(f"{name}={value}", in_command=in_command) for name, value in values.items())


def _executable(path: Path) -> str:
    """Quote the program, whose path systemd takes as it is, without variables."""
    if not str(path).isprintable():
        raise ConfigError(f"no unit can name {str(path)!a}", hint="install vllmrt somewhere else")
    return unit_word(str(path))


def _written(deployment: Deployment) -> list[str]:
    settings = deployment.settings
    directories = (settings.models_dir, settings.prometheus_multiproc_dir)
    files = (settings.metrics_file, settings.preflight_lockfile)  # replaced, so their directories are written
    places = [*filter(None, directories), *(file.parent for file in files if file)]
    return list(dict.fromkeys(map(str, places)))


def _published(deployment: Deployment) -> str:
    host, port = deployment.settings.host, deployment.settings.port
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.strip("[]"))
    except ValueError:
        raise ConfigError(f"podman publishes no port at {host!a}", hint="set VLLM_HOST to an IP address") from None
    return f"{f'[{address}]' if address.version == 6 else address}:{port}:{port}"  # noqa: PLR2004 - IPv6


def _volume(path: str) -> str:
    """Return a directory of the host for ``Volume=``, whose value podman splits and does not unquote."""
    if any(char in path for char in " \t\"'\\$,"):
        raise ConfigError(f"no volume can be made of {path!a}", hint="set VLLM_MODELS_DIR to a plain path")
    return path.replace("%", "%%")
