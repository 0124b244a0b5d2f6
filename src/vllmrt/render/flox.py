"""The manifest of a Flox environment (manifest.toml(1)): what is installed, the hook, the service."""

from __future__ import annotations

import shlex
from importlib.resources import files
from typing import TYPE_CHECKING

from vllmrt import discovery
from vllmrt.render.quoting import toml_string

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllmrt.render.deployment import Deployment

# They go with the model: who names another one does not want them.
_OF_THE_MODEL = ("VLLM_MODEL", "VLLM_MODEL_ID", "VLLM_MODEL_REVISION", "VLLM_SERVED_MODEL_NAME")
_SET_BY_FLOX = ("flox_env", "flox_env_project", "flox_env_cache")


def manifest(deployment: Deployment, requirements: Iterable[str]) -> dict[str, str]:
    """Return the manifest.

    Args:
        deployment: what the service runs.
        requirements: distributions with their versions, for pip.
    """
    values = deployment.model | deployment.without(*_SET_BY_FLOX)
    of_the_model = {name: values.pop(name) for name in _OF_THE_MODEL if name in values}
    template = files("vllmrt.render").joinpath("manifest.toml.in").read_text()
    text = template.format(
        requirements=shlex.quote(" ".join(requirements)),
        defaults="\n".join(_defaults(values)),
        model="\n  ".join(_defaults(of_the_model)),
        service=toml_string(_service(deployment)),
    )
    return {"manifest.toml": text}


def requirements(deployment: Deployment, version: str) -> list[str]:
    """Return what the environment needs of Python packages: what is installed here, in the same versions.

    Args:
        deployment: which names the sources, the probes and the model.
        version: of vllmrt.
    """
    settings = deployment.settings
    wanted = {
        discovery.SOURCES: settings.model_sources,
        discovery.GPU_PROBES: settings.gpu_probes,
        discovery.MODELS: (deployment.request.model_id,),
    }
    without = {*map(discovery.normalise, settings.disable_plugins), "vllmrt"}
    points = [point for point in discovery.entry_points() if point.distribution not in without]
    chosen = {
        (point.distribution, point.version)
        for point in points
        if point.group == discovery.PLUGINS or point.name in wanted.get(point.group, ())
    }
    return [f"vllmrt=={version}", *(f"{name}=={number}" for name, number in sorted(chosen))]


def _service(deployment: Deployment) -> str:
    command = shlex.join(["vllmrt", *deployment.command()])
    return f'export PATH="$PATH:$FLOX_ENV_CACHE/vllmrt/bin"; exec {command}'


def _defaults(values: Mapping[str, str]) -> Iterable[str]:
    """Write what the user's environment may replace; the quotes hold within the braces, where a shell expands."""
    for name, value in values.items():
        yield f"export {name}=${{{name}:-{shlex.quote(value)}}}"
