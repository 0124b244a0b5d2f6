"""``vllmrt up``: inspect, resolve, reclaim, serve. The stages do not know each other; values pass between them here."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from vllmrt import discovery
from vllmrt.errors import ConfigError, ServeRefused
from vllmrt.events import Event
from vllmrt.host import PluginHost
from vllmrt.identity import DEFAULT_MODEL, requested
from vllmrt.resolve import log
from vllmrt.resolve.loop import Resolved, Resolver
from vllmrt.types import ModelRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from vllmrt.events import Emit
    from vllmrt.layers import Layers
    from vllmrt.resolve.planning import Offer
    from vllmrt.serve.launch import LaunchPlan
    from vllmrt.settings import Settings


def resolve(layers: Layers, emit: Emit) -> Resolved:
    """Find the model, prove it, and write the env file for other tools.

    Raises:
        VllmrtError: any of `vllmrt.resolve.loop.Resolver.resolve`, or a name or source that cannot be used.
    """
    resolved = _resolve(*_prepare(layers, emit), layers.settings, emit)
    if not layers.settings.dry_run:
        _write_env_file(layers.settings, resolved, emit)
    return resolved


class Ready(NamedTuple):
    """A model that is ready to be served.

    Attributes:
        resolved: the model.
        plan: of its launch.
        clearing: a block in which port and GPUs are free for it: entering stops a stale server. Its value is the answer
            of the preflight, empty where none was wanted.
    """

    resolved: Resolved
    plan: LaunchPlan
    clearing: AbstractContextManager[dict[str, Any]]


def up(layers: Layers, emit: Emit, environ: Mapping[str, str], extra: Sequence[str]) -> Ready:
    """Look at port and GPUs, resolve the model, and plan its launch; nothing is stopped yet.

    Raises:
        VllmrtError: as `resolve`, PreflightError, or ServeRefused.
    """
    from vllmrt.serve.engine import find_engine
    from vllmrt.serve.nodes import stands_alone

    environ = dict(environ)  # a plugin can change that of this process, and not the server's
    prepared = _prepare(layers, emit)
    find_engine(layers.settings, environ)
    clearing = _inspect(layers.settings, prepared[1], emit, alone=stands_alone(layers.settings, environ, extra))
    resolved = _resolve(*prepared, layers.settings, emit)
    if not layers.settings.dry_run:
        try:
            _write_env_file(layers.settings, resolved, emit)
        except ConfigError as error:  # it is for other tools; the launch does not need it
            emit(Event("resolve.envfile", "env file", str(error), "warning"))
    return Ready(resolved, _plan(layers, resolved.path, resolved.request.model_id, environ, extra), clearing)


class Told(NamedTuple):
    """What `up` would do.

    Attributes:
        request: which model.
        port: what would be done about the port, as `vllmrt.preflight.run.Preflight.outlook` says it.
        offers: what each source says, in order.
        path: what would be served; None where no source has the model.
        free: bytes on the disk of the store.
        argv: the command line; empty without a path.
        command: the same for a shell.
        added: variables that the server's environment has and ours has not, or has otherwise.
        removed: names of those that are taken out.
    """

    request: ModelRequest
    port: dict[str, Any]
    offers: list[Offer]
    path: Path | None
    free: int | None
    argv: list[str]
    command: str
    added: dict[str, str]
    removed: list[str]


def plan(layers: Layers, emit: Emit, environ: Mapping[str, str], extra: Sequence[str]) -> Told:
    """Ask every source, and say what `up` would do; nothing is fetched, validated or written.

    Raises:
        VllmrtError: a name or source that cannot be used, or ServeRefused.
    """
    from vllmrt.masking import redact_argv
    from vllmrt.preflight.run import Preflight
    from vllmrt.resolve.planning import Planner
    from vllmrt.serve.argv import format_command

    environ = dict(environ)  # as in `up`
    request, host = _prepare(layers, emit)
    port = Preflight(layers.settings, host, emit).outlook() if layers.settings.preflight else {}
    planner = Planner(host, layers.settings)
    offers = list(planner.offers(request, layers.settings.model_sources))
    path = next((offer.path for offer in offers if offer.path), None)
    if path is None:
        return Told(request, port, offers, None, planner.free(), [], "", {}, [])
    launch = _plan(layers, path, request.model_id, environ, extra, dry_run=True)
    added = {name: value for name, value in launch.environ.items() if environ.get(name) != value}
    removed = sorted(set(environ) - set(launch.environ))
    argv = redact_argv(launch.argv)
    return Told(request, port, offers, path, planner.free(), argv, format_command(argv), added, removed)


def size(layers: Layers, emit: Emit) -> int | None:
    """Ask the sources how many bytes the model has; None where none has it. Nothing is fetched.

    Raises:
        VllmrtError: a name or source that cannot be used.
    """
    from vllmrt.resolve.planning import Planner

    request, host = _prepare(layers, emit)
    for offer in Planner(host, layers.settings).offers(request, layers.settings.model_sources):
        if offer.path is not None:
            return offer.whole or sum(file.stat().st_size for file in offer.path.rglob("*") if file.is_file())
    return None


class Recorded(NamedTuple):
    """What an earlier resolve wrote into its env file.

    Attributes:
        path: of the file.
        values: the variables that it sets.
        identity: of the model.
    """

    path: Path
    values: dict[str, str]
    identity: str


def recorded(settings: Settings, environ: Mapping[str, str]) -> Recorded:
    """Read the env file of the model that is asked for.

    Raises:
        ServeRefused: the file is missing, unsafe, or speaks of another model.
    """
    from vllmrt.resolve import envfile

    request = requested(settings)
    path = envfile.path_for(settings, request or ModelRequest(DEFAULT_MODEL))
    values = envfile.source(path, environ) if settings.env_file_trusted else envfile.load(path)
    identity = envfile.identity(path, values)
    if request and identity != request.identity:
        raise ServeRefused(f"{path} is of {identity}, not of {request.identity}", hint=envfile.AGAIN)
    return Recorded(path, values, identity)


def serve(layers: Layers, record: Recorded, environ: Mapping[str, str], extra: Sequence[str]) -> LaunchPlan:
    """Plan the launch of what an earlier resolve found.

    Raises:
        ServeRefused: the model is gone, or as `vllmrt.serve.launch.plan_launch`.
    """
    from vllmrt.resolve import envfile

    directory = envfile.directory(record.path, record.values)
    model_id = record.identity.partition("@")[0]
    return _plan(layers, directory, model_id, {**environ, **record.values}, extra)


def _prepare(layers: Layers, emit: Emit) -> tuple[ModelRequest, PluginHost]:
    """Refuse what can be refused from the names alone."""
    settings = layers.settings
    request = requested(settings)
    if request is None:
        request = ModelRequest(DEFAULT_MODEL)
        text = f"none is named, so this is {DEFAULT_MODEL}, the one that comes with vllmrt"
        emit(Event("resolve.default", "model", text, data={"model": DEFAULT_MODEL}))
    host = PluginHost(settings)
    if "model_sources" in layers.origins:
        host.require(discovery.SOURCES, settings.model_sources)
    return request, host


def _inspect(
    settings: Settings, host: PluginHost, emit: Emit, *, alone: bool
) -> AbstractContextManager[dict[str, Any]]:
    """Refuse what no model can mend; return the block that stops what is stale."""
    if not settings.preflight:
        return nullcontext({})
    from vllmrt.preflight.run import Preflight

    checks = Preflight(settings, host, emit, alone=alone)
    found = checks.inspect()
    return nullcontext(found) if settings.dry_run else checks.cleared()


def _resolve(request: ModelRequest, host: PluginHost, settings: Settings, emit: Emit) -> Resolved:
    with log.kept(settings, request, emit) as noted:
        return Resolver(host, settings, noted).resolve(request, settings.model_sources)


def _plan(
    layers: Layers,
    path: Path,
    model_id: str,
    environ: Mapping[str, str],
    extra: Sequence[str],
    *,
    dry_run: bool = False,
) -> LaunchPlan:
    from vllmrt.serve.launch import plan_launch

    return plan_launch(
        path,
        layers.settings,
        model_id=model_id,
        explicit=frozenset(layers.origins),
        extra=extra,
        environ=environ,
        dry_run=dry_run or layers.settings.dry_run,
    )


def _write_env_file(settings: Settings, resolved: Resolved, emit: Emit) -> None:
    from vllmrt.resolve import envfile

    path = envfile.path_for(settings, resolved.request)
    name = settings.model or resolved.request.name
    envfile.write(path, envfile.contents(resolved, directory_name=name))
    emit(Event("resolve.envfile", "env file", str(path), data={"path": str(path)}))
