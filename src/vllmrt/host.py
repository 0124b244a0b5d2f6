"""The plugin host: loads by name, asks one plugin at a time, and knows whom to blame. The only user of pluggy."""

from __future__ import annotations

import functools
import importlib
import threading
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from vllmrt import discovery
from vllmrt.boundary import CheckedRange, canonical, disable_hint, drained, failure, skipped, typed, watched
from vllmrt.errors import ClassifierError, ConfigError, PluginError, SourceError
from vllmrt.types import Candidate, Finding, GpuStatus, Skip, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import pluggy
    from pluggy import HookImpl

    from vllmrt.discovery import EntryPoint
    from vllmrt.settings import Settings
    from vllmrt.types import ModelRequest, ModelSource, ModelTree, ProcessInfo, ReadableRange, RemoteFile, Validator


T = TypeVar("T")
_SLICE = 0.5
_OFFERS = {
    discovery.SOURCES: ("vllmrt_sources", "source", "probe"),
    discovery.GPU_PROBES: ("vllmrt_gpu_probes", "GPU probe", "read"),
}
"""By group, what is loaded by name: the hook that offers it, what it is called, and the method that it must have."""


class Source(NamedTuple):
    """A source that was loaded, and whose it is."""

    entry: EntryPoint
    object: ModelSource

    @property
    def name(self) -> str:
        """What the user types; the source's own attribute may change its mind."""
        return self.entry.name


class Guard(NamedTuple):
    """A validator that was loaded, and whose it is."""

    entry: EntryPoint
    name: str
    object: Validator


class PluginHost:
    """All plugins of one run.

    Args:
        settings: handed to every hook; `disable_plugins` and `plugin_timeout` are obeyed here.
        entry_points: what is installed; None reads it from `sys.path`.
    """

    def __init__(self, settings: Settings, entry_points: Sequence[EntryPoint] | None = None) -> None:
        found = discovery.entry_points() if entry_points is None else entry_points
        disabled = {discovery.normalise(name) for name in settings.disable_plugins}
        self._settings = settings
        self._entries = [entry for entry in found if entry.distribution not in disabled]
        self._manager: pluggy.PluginManager | None = None

    def installed(self, group: str) -> list[EntryPoint]:
        """Return the entry points of one group that are not disabled."""
        return [entry for entry in self._entries if entry.group == group]

    def select(self, group: str, name: str) -> EntryPoint | None:
        """Return the entry point called `name`, None where there is none.

        Raises:
            PluginError: two distributions claim the name.
        """
        claims = {entry.distribution: entry for entry in self.installed(group) if entry.name == name}
        if len(claims) > 1:
            owners = " and ".join(entry.owner for entry in claims.values())
            raise PluginError(
                f"{name} is claimed by two plugins: {owners}",
                hint=f"uninstall one, or set VLLMRT_DISABLE_PLUGINS to one of {', '.join(claims)}",
            )
        return next(iter(claims.values()), None)

    def require(self, group: str, names: Iterable[str]) -> None:
        """Raise ConfigError, with the installed names, unless every name is installed."""
        unknown = [name for name in names if self.select(group, name) is None]
        if unknown:
            installed = ", ".join(sorted({entry.name for entry in self.installed(group)})) or "none"
            raise ConfigError(
                f"no plugin in {group} is called {', '.join(map(ascii, unknown))}; installed: {installed}",
                hint="pip install the plugin's distribution into the environment of vllmrt",
            )

    def load(self, entry: EntryPoint) -> None:
        """Load one plugin and look at what it offers; nothing of it is used. Raises PluginError as its use would."""
        look: Callable[[EntryPoint], Any] = self._registered if entry.group in _OFFERS else self._ask
        look(entry)

    def source(self, entry: EntryPoint) -> Source:
        """Load a source.

        Raises:
            PluginError: it cannot be imported, or offers no source of that name.
        """
        return Source(entry, self._registered(entry))

    def validators(self) -> list[Guard]:
        """Load every validator.

        Raises:
            PluginError: one cannot be loaded, or there is none: what guards fails closed.
        """
        ambient = self.installed(discovery.PLUGINS)
        guards = [guard for entry in ambient for guard in self._ask(entry)]
        if not guards:
            raise PluginError("no validator is installed, so no model can be proven whole", hint="enable vllmrt's own")
        return guards

    def probe(self, source: Source, request: ModelRequest) -> tuple[Candidate, ...] | Skip:
        """Ask a source where a model is.

        Raises:
            SourceError: as the source raised it; PluginError for anything else that it does.
        """
        answer = self._guarded(source.entry, "probe", lambda: drained(source.object.probe(request)))
        checked = skipped(source.entry, "probe", answer) or typed(source.entry, "probe", answer, Candidate)
        return checked if isinstance(checked, Skip) else tuple(map(canonical, checked))

    def read_gpus(self, entry: EntryPoint, devices: tuple[str, ...]) -> tuple[GpuStatus, ...] | Skip:
        """Load a GPU probe and ask it; `vllmrt.gpu.child` is where this may be done.

        Raises:
            PluginError: it cannot be loaded, raised, or answered something else than GPUs. Their fields are not
                checked here, but by whoever reads what the child wrote.
        """
        probe = self._registered(entry)
        answer = self._guarded(entry, "read", lambda: drained(probe.read(devices)))
        return skipped(entry, "read", answer) or typed(entry, "read", answer, GpuStatus)

    def opener(self, source: Source, candidate: Candidate) -> Callable[[RemoteFile, int, int], ReadableRange]:
        """Return what opens the bytes of a candidate's files.

        Raises:
            PluginError: the source offers files, and cannot open them.
        """
        opener = getattr(source.object, "open", None)
        if not callable(opener):
            entry = source.entry
            raise PluginError(f"{entry.owner}: {entry.name} offers files, but has no open()", hint=disable_hint(entry))

        def open_range(file: RemoteFile, start: int, stop: int) -> ReadableRange:
            return CheckedRange(
                source.entry, watched(source.entry, "open", lambda: opener(candidate, file, start, stop))
            )

        return open_range

    def check(self, guard: Guard, tree: ModelTree) -> tuple[Finding, ...]:
        """Ask a validator about a model directory.

        Raises:
            PluginError: it raised, or answered something else than findings.
        """
        what = f"validator {guard.name}"
        # No time limit: a validator may read every byte of the model, and what guards is not hurried.
        answer = self._guarded(guard.entry, what, lambda: drained(guard.object.check(tree)), limited=False)
        return typed(guard.entry, "check", answer, Finding)

    def verdicts(self, processes: Sequence[ProcessInfo]) -> list[Verdict | None]:
        """Ask every classifier about every process; one PROTECTED outweighs every VLLM.

        Raises:
            ClassifierError: one raised, or answered something else than a verdict. PluginError: one cannot be loaded.
        """
        answers: list[set[Verdict | None]] = [set() for _ in processes]
        for entry, hook in self._classifiers():
            for answer, verdict in zip(answers, self._judge(entry, hook, processes), strict=True):
                answer.add(verdict)
        return [next((one for one in (Verdict.PROTECTED, Verdict.VLLM) if one in answer), None) for answer in answers]

    def _classifiers(self) -> list[tuple[EntryPoint, HookImpl]]:
        name, found = "vllmrt_classify_process", []
        for entry in self.installed(discovery.PLUGINS):
            hooks = self._guarded(entry, "loading", functools.partial(self._hooks, entry, name))
            found += [(entry, hook) for hook in hooks]
        return found

    def _judge(self, entry: EntryPoint, hook: HookImpl, processes: Sequence[ProcessInfo]) -> list[Verdict | None]:
        def ask() -> list[Verdict | None]:
            given = [{"process": process, "settings": self._settings} for process in processes]
            call = cast("Any", hook.function)
            return [call(*[values[name] for name in hook.argnames]) for values in given]

        try:
            verdicts = self._guarded(entry, "vllmrt_classify_process", ask)
            typed(entry, "vllmrt_classify_process", tuple(one for one in verdicts if one is not None), Verdict)
        except (PluginError, SourceError) as error:
            raise ClassifierError(str(error), hint=error.hint) from error
        return verdicts

    def _ask(self, entry: EntryPoint) -> list[Guard]:
        offered = self._guarded(entry, "loading", lambda: self._offered(entry, "vllmrt_validators"))
        for name, validator, kind in offered:
            if not isinstance(name, str) or not callable(getattr(validator, "check", None)):
                raise PluginError(f"{entry.owner}: {kind} is no validator", hint=disable_hint(entry))
        return [Guard(entry, name, validator) for name, validator, _ in offered]

    def _registered(self, entry: EntryPoint) -> Any:
        """Load the object that a plugin registers under the name of its entry point."""
        hook, what, method = _OFFERS[entry.group]
        offered = self._guarded(entry, "loading", lambda: self._offered(entry, hook))
        for name, found, _ in offered:
            if name == entry.name and callable(getattr(found, method, None)):
                return found
        kinds = ", ".join(kind for _, _, kind in offered) or "nothing"
        raise PluginError(f"{entry.owner}: offers no {what} called {entry.name}, but {kinds}", hint=disable_hint(entry))

    def _offered(self, entry: EntryPoint, hook: str) -> list[tuple[Any, Any, str]]:
        """Import one plugin, register it, and drain what its implementation of the hook returns: name, object, type."""
        return [
            (getattr(item, "name", None), item, type(item).__name__)
            for implementation in self._hooks(entry, hook)
            for item in drained(
                cast("Any", implementation.function)(*[self._settings for _ in implementation.argnames])
            )
        ]

    def _hooks(self, entry: EntryPoint, hook: str) -> list[HookImpl]:
        """Import one plugin, register it, and return its implementations of a hook."""
        plugin = self._load(entry)
        implementations = getattr(self._pluggy().hook, hook).get_hookimpls()
        return [implementation for implementation in implementations if implementation.plugin is plugin]

    def _load(self, entry: EntryPoint) -> object:
        module, _, attribute = entry.value.partition(":")
        plugin: object = importlib.import_module(module.strip())
        if attribute:
            plugin = attrgetter(attribute.split("[")[0].strip())(plugin)
        import pluggy

        manager = self._pluggy()
        if not manager.is_registered(plugin):
            manager.register(plugin, name=f"{entry.distribution}:{entry.group}:{entry.name}")
            try:
                manager.check_pending()
            except pluggy.PluginValidationError:
                manager.unregister(plugin)  # else the next plugin would be blamed for it
                raise
        return plugin

    def _pluggy(self) -> pluggy.PluginManager:
        if self._manager is None:
            import pluggy

            from vllmrt import hookspecs

            self._manager = pluggy.PluginManager(hookspecs.PROJECT)
            self._manager.add_hookspecs(hookspecs)
        return self._manager

    def _guarded(self, entry: EntryPoint, what: str, call: Callable[[], T], *, limited: bool = True) -> T:
        """Run plugin code in a thread, so that one that hangs costs its time limit and not the run."""
        box: list[T | BaseException] = []

        def run() -> None:
            try:
                box.append(call())
            except BaseException as error:  # noqa: BLE001 - a plugin may raise anything, SystemExit too
                box.append(error)

        thread = threading.Thread(target=run, name=f"vllmrt {entry.name}", daemon=True)
        thread.start()
        _wait(thread, min(self._settings.plugin_timeout, threading.TIMEOUT_MAX) if limited else None)
        if not box:
            seconds = f"{self._settings.plugin_timeout:g} s"
            raise PluginError(f"{entry.owner}: {what} gave no answer in {seconds}", hint=disable_hint(entry))
        answer = box[0]
        if isinstance(answer, SourceError):
            raise answer
        if isinstance(answer, BaseException):
            raise failure(entry, what, answer) from answer
        return answer


def _wait(thread: threading.Thread, seconds: float | None) -> None:
    """Join in slices: Ctrl-C that arrives just before a join is not seen until the join ends."""
    deadline = None if seconds is None else monotonic() + seconds
    while thread.is_alive() and (deadline is None or monotonic() < deadline):
        thread.join(_SLICE if deadline is None else min(_SLICE, max(0.0, deadline - monotonic())))
