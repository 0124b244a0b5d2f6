"""The hooks that a plugin may implement.

Sources and GPU probes are *registered objects*: the user names and orders them, so a plugin is loaded only when the
name of its entry point is used. Validators and classifiers are *asked, all of them*: every installed one is loaded.

A plugin is a module with functions that are marked with `vllmrt.hookimpl`, named by an entry point of the group that
each hook below states. An implementation may take any subset of a hook's arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllmrt.settings import Settings
    from vllmrt.types import GpuProbe, ModelSource, ProcessInfo, Validator, Verdict

PROJECT = "vllmrt"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def vllmrt_sources(settings: Settings) -> Iterable[ModelSource]:  # type: ignore[empty-body]
    """Offer model sources. Entry-point group ``vllmrt.sources``; the entry point's name is the source's name.

    A source that finds models on a mounted share::

        # acme_share.py
        from dataclasses import dataclass
        from pathlib import Path

        import vllmrt
        from vllmrt.types import Candidate, ModelRequest, Skip


        @dataclass(frozen=True)
        class Share:
            mount: Path
            name: str = "acme-share"

            def probe(self, request: ModelRequest) -> tuple[Candidate, ...] | Skip:
                path = self.mount / request.org / request.name
                if not path.is_dir():
                    return Skip(f"nothing at {path}", hint="mount the share")
                return (Candidate(str(path), path=path),)


        @vllmrt.hookimpl
        def vllmrt_sources():
            yield Share(Path("/mnt/models"))

        # pyproject.toml
        [project.entry-points."vllmrt.sources"]
        acme-share = "acme_share"

    ``vllmrt up org/name --sources acme-share`` then uses it.

    Args:
        settings: the run's settings, which are not to be read from `os.environ` again. A variable that only this
            plugin knows is read here, once; its name does not begin with ``VLLMRT_``.

    Returns:
        objects that fulfil `vllmrt.types.ModelSource` or `vllmrt.types.RemoteSource`.
    """


@hookspec
def vllmrt_gpu_probes(settings: Settings) -> Iterable[GpuProbe]:  # type: ignore[empty-body]
    """Offer ways to read the GPUs. Entry-point group ``vllmrt.gpu_probes``; loaded when named.

    A probe for machines whose GPUs are known beforehand::

        # acme_gpu.py
        from dataclasses import dataclass

        import vllmrt
        from vllmrt.types import GpuStatus


        @dataclass(frozen=True)
        class Inventory:
            name: str = "acme-inventory"

            def read(self, devices: tuple[str, ...]) -> tuple[GpuStatus, ...]:
                gib = 1 << 30
                gpu = GpuStatus(0, uuid="GPU-0", name="Acme 80GB", memory_total=80 * gib, memory_free=79 * gib)
                return (gpu,) if not devices or "0" in devices else ()


        @vllmrt.hookimpl
        def vllmrt_gpu_probes():
            yield Inventory()

        # pyproject.toml
        [project.entry-points."vllmrt.gpu_probes"]
        acme-inventory = "acme_gpu"

    ``VLLMRT_GPU_PROBES=acme-inventory,nvml`` then asks it first. A probe is loaded and asked in a child process, which
    is killed after VLLMRT_GPU_PROBE_TIMEOUT seconds. If it hangs or crashes there, it costs its answer and no more;
    what it prints is lost.

    Args:
        settings: the run's settings.

    Returns:
        objects that fulfil `vllmrt.types.GpuProbe`.
    """


@hookspec
def vllmrt_validators(settings: Settings) -> Iterable[Validator]:  # type: ignore[empty-body]
    """Judge every model before it is served. Entry-point group ``vllmrt.plugins``; always loaded.

    A validator that refuses models without a licence file::

        # acme_licence.py
        from dataclasses import dataclass

        import vllmrt
        from vllmrt.types import Finding, ModelTree, Severity


        @dataclass(frozen=True)
        class Licence:
            name: str = "acme-licence"

            def check(self, tree: ModelTree) -> tuple[Finding, ...]:
                if (tree.path / "LICENSE").is_file():
                    return ()
                return (Finding(Severity.ERROR, message="no licence", code="acme-no-licence", file="LICENSE"),)


        @vllmrt.hookimpl
        def vllmrt_validators():
            yield Licence()

        # pyproject.toml
        [project.entry-points."vllmrt.plugins"]
        acme-licence = "acme_licence"

    Validators guard, so they fail closed: one that raises rejects the model, one that cannot be loaded stops the run.

    Args:
        settings: the run's settings.

    Returns:
        objects that fulfil `vllmrt.types.Validator`.
    """


@hookspec
def vllmrt_classify_process(process: ProcessInfo, settings: Settings) -> Verdict | None:
    """Say whether a process that holds the port may be stopped. Entry-point group ``vllmrt.plugins``; always loaded.

    A classifier that protects what a supervisor of ours started::

        # acme_protect.py
        import vllmrt
        from vllmrt.types import ProcessInfo, Verdict


        @vllmrt.hookimpl
        def vllmrt_classify_process(process: ProcessInfo) -> Verdict | None:
            supervised = any(parent.argv[:1] == ("acme-supervisor",) for parent in process.ancestors)
            return Verdict.PROTECTED if supervised else None

        # pyproject.toml
        [project.entry-points."vllmrt.plugins"]
        acme-protect = "acme_protect"

    One PROTECTED outweighs every VLLM; an exception means that nothing is stopped.

    Args:
        process: the process and its ancestors.
        settings: the run's settings.

    Returns:
        a verdict, or None for no opinion.
    """
