"""``vllmrt render``."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllmrt import pipeline
from vllmrt.cli.options import Run, command
from vllmrt.errors import ConfigError, ServeRefused
from vllmrt.events import Event, human_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllmrt.render.deployment import Deployment

app = typer.Typer(no_args_is_help=True, add_completion=False)
SECTIONS = ("model", "transfer", "stores", "server", "engine", "logging", "plugins", "up", "--reap-orphans")
Output = Annotated[
    Path | None, typer.Option("--output", metavar="DIR", help="Write files into this directory instead of printing.")
]
Image = Annotated[str | None, typer.Option("--image", help="The image, with vllm and vllmrt; default vllmrt:VERSION.")]
_GB = 1_000_000_000


@app.callback()
def render() -> None:
    """Print what starts vllmrt unattended, or watches it, filled in from the settings; never a secret.

    Only what differs from the defaults is written. Arguments after -- go to vllm serve.
    """


@app.command()
@command(*SECTIONS, takes_extra=True)
def k8s(
    run: Run,
    *,
    image: Image = None,
    model_size: Annotated[
        float | None,
        typer.Option("--model-size", min=0, metavar="GB", help="Size of the model; without it, the sources are asked."),
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Nodes among which the model is divided.")] = 1,
    output: Output = None,
) -> None:
    """Print the manifests for Kubernetes: namespace, volume, deployment, service.

    With more than one node, a LeaderWorkerSet takes the deployment's place.
    """
    from vllmrt.render.budget import UNKNOWN_SIZE
    from vllmrt.render.kubernetes import manifests

    if model_size is not None and not math.isfinite(model_size):
        raise ConfigError(f"--model-size {model_size} is no size", hint="give it in GB")
    deployment = _described(run)
    _warn_of_this_machine(run, deployment)
    size = round(model_size * _GB) if model_size is not None else pipeline.size(run.layers, run.emit)
    if size is None:
        size = UNKNOWN_SIZE
        text = f"no source says how large the model is, so this is for {human_size(size)}; --model-size says it"
        run.emit(Event("render.warning", "size", text, "warning"))
    _show(run, manifests(deployment, image=_image(image), size=size, nodes=nodes), output, between="---\n")


@app.command()
@command(*SECTIONS, takes_extra=True)
def flox(run: Run, *, output: Output = None) -> None:
    """Print the manifest of a Flox environment, with vllmrt as its service."""
    from vllmrt.render.flox import manifest, requirements

    deployment = _described(run)
    _show(run, manifest(deployment, requirements(deployment, _version())), output)


@app.command()
@command(*SECTIONS, takes_extra=True)
def systemd(run: Run, *, output: Output = None) -> None:
    """Print a service for systemd, on this machine."""
    from vllmrt.render.units import service

    executable = Path(sys.executable).with_name("vllmrt")
    _show(run, service(_described(run), executable, _engine(run)), output)


@app.command()
@command(*SECTIONS, takes_extra=True)
def quadlet(run: Run, *, image: Image = None, output: Output = None) -> None:
    """Print a container for podman's quadlet."""
    from vllmrt.render.units import container

    deployment = _described(run)
    _warn_of_this_machine(run, deployment)
    _show(run, container(deployment, _image(image)), output)


@app.command()
@command("server")
def prometheus(run: Run, *, output: Output = None) -> None:
    """Print the configuration of a Prometheus that watches the server, and its alert rules."""
    from vllmrt.monitoring.prometheus import configuration

    _show(run, configuration(run.layers.settings), output, between="---\n")


@app.command()
@command()
def grafana(run: Run, *, output: Output = None) -> None:
    """Print a dashboard for Grafana; its Prometheus is chosen in it."""
    from vllmrt.monitoring.grafana import DASHBOARD, as_text

    _show(run, {DASHBOARD: as_text()}, output)


def _described(run: Run) -> Deployment:
    from vllmrt.render.deployment import describe

    deployment = describe(run.layers.settings, run.extra, os.environ)
    for warning in deployment.warnings:
        run.emit(Event("render.warning", "render", warning, "warning"))
    return deployment


def _engine(run: Run) -> Path | None:
    """Return the engine that is found here through PATH, since a service has another."""
    from vllmrt.serve.engine import find_engine

    if run.layers.settings.vllm:
        return None
    try:
        found = find_engine(run.layers.settings, os.environ)
    except ServeRefused as error:
        run.emit(Event("render.warning", "engine", str(error), "warning"))
        return None
    return None if found.parent == Path(sys.executable).parent else found


def _warn_of_this_machine(run: Run, deployment: Deployment) -> None:
    if names := deployment.of_this_machine:
        text = f"left out, because it is of this machine and not of the container: {', '.join(names)}"
        run.emit(Event("render.warning", "render", text, "warning"))


def _version() -> str:
    import vllmrt

    return vllmrt.__version__


def _image(image: str | None) -> str:
    image = image or f"vllmrt:{_version()}"
    if not image.isprintable() or not image.isascii() or set(image) & set(" \\"):
        raise ConfigError(f"no image is called {image!a}", hint="write --image NAME:TAG")
    return image


def _show(run: Run, files: Mapping[str, str], output: Path | None, between: str = "") -> None:
    if output:
        from vllmrt.paths import write_atomic

        for name, text in files.items():
            write_atomic(output / name, text.encode(), mode=0o644)
            run.emit(Event("render.file", "written", str(output / name), "good", {"path": str(output / name)}))
    if run.json:
        run.print_json({"ok": True, "files": files})
    elif not output:
        run.out.write(between.join(files.values()))
        run.out.flush()
