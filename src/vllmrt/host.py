"""The plugin host: loads by name, asks one plugin at a time, and knows whom to blame. The only user of pluggy."""

from __future__ import annotations

import importlib
import threading
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from vllmrt import discovery
from vllmrt.errors import ConfigError, PluginError, SourceError
from vllmrt.types import Candidate, Finding, Skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import pluggy

    from vllmrt.discovery import EntryPoint
    from vllmrt.settings import Settings
    from vllmrt.types import ModelRequest, ModelSource, ModelTree, Validator


T = TypeVar("T")


class Source(NamedTuple):
    """A source that was loaded, and whose it is."""

    entry: EntryPoint
    object: ModelSource


class Guard(NamedTuple):
    """A validator that was loaded, and whose it is."""

    entry: EntryPoint
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

    def source(self, entry: EntryPoint) -> Source:
        """Load a source.

        Raises:
            PluginError: it cannot be imported, or offers no source of that name.
        """
        offered = self._guarded(entry, "loading", lambda: self._offered(entry, "vllmrt_sources"))
        for source in offered:
            if getattr(source, "name", None) == entry.name and callable(getattr(source, "probe", None)):
                return Source(entry, source)
        kinds = ", ".join(type(source).__name__ for source in offered) or "nothing"
        raise PluginError(f"{entry.owner}: offers no source called {entry.name}, but {kinds}", hint=_disable(entry))

    def validators(self) -> list[Guard]:
        """Load every validator.

        Raises:
            PluginError: one cannot be loaded, or there is none: what guards fails closed.
        """
        ambient = self.installed(discovery.PLUGINS)
        guards = [Guard(entry, validator) for entry in ambient for validator in self._ask(entry)]
        if not guards:
            raise PluginError("no validator is installed, so no model can be proven whole", hint="enable vllmrt's own")
        return guards

    def probe(self, source: Source, request: ModelRequest) -> tuple[Candidate, ...] | Skip:
        """Ask a source where a model is.

        Raises:
            SourceError: as the source raised it; PluginError for anything else that it does.
        """
        answer = self._guarded(source.entry, "probe", lambda: _drain(source.object.probe(request)))
        return answer if isinstance(answer, Skip) else _typed(source.entry, "probe", answer, Candidate)

    def check(self, guard: Guard, tree: ModelTree) -> tuple[Finding, ...]:
        """Ask a validator about a model directory.

        Raises:
            PluginError: it raised, or answered something else than findings.
        """
        what = f"validator {guard.object.name}"
        # No time limit: a validator may read every byte of the model, and what guards is not hurried.
        answer = self._guarded(guard.entry, what, lambda: _drain(guard.object.check(tree)), limited=False)
        return _typed(guard.entry, "check", answer, Finding)

    def _ask(self, entry: EntryPoint) -> list[Validator]:
        offered = self._guarded(entry, "loading", lambda: self._offered(entry, "vllmrt_validators"))
        for validator in offered:
            if not isinstance(getattr(validator, "name", None), str) or not callable(getattr(validator, "check", None)):
                raise PluginError(f"{entry.owner}: {type(validator).__name__} is no validator", hint=_disable(entry))
        return offered

    def _offered(self, entry: EntryPoint, hook: str) -> list[Any]:
        """Import one plugin, register it and drain what its one implementation of the hook returns."""
        plugin = self._load(entry)
        return [
            item
            for implementation in getattr(self._pluggy().hook, hook).get_hookimpls()
            if implementation.plugin is plugin
            for item in implementation.function(*[self._settings for _ in implementation.argnames])
        ]

    def _load(self, entry: EntryPoint) -> object:
        module, _, attribute = entry.value.partition(":")
        plugin: object = importlib.import_module(module.strip())
        if attribute:
            plugin = attrgetter(attribute.split("[")[0].strip())(plugin)
        manager = self._pluggy()
        if not manager.is_registered(plugin):
            manager.register(plugin, name=f"{entry.distribution}:{entry.group}:{entry.name}")
            manager.check_pending()
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
        thread.join(self._settings.plugin_timeout if limited else None)
        if not box:
            seconds = f"{self._settings.plugin_timeout:g} s"
            raise PluginError(f"{entry.owner}: {what} gave no answer in {seconds}", hint=_disable(entry))
        answer = box[0]
        if isinstance(answer, SourceError):
            raise answer
        if isinstance(answer, BaseException):
            fault = f"{type(answer).__name__}: {answer}"
            raise PluginError(f"{entry.owner}: {what} failed: {fault}", hint=_disable(entry)) from answer
        return answer


def _typed(entry: EntryPoint, what: str, answer: Any, kind: type[T]) -> tuple[T, ...]:
    wrong = next((item for item in answer if not isinstance(item, kind)), None)
    if wrong is not None:
        raise PluginError(
            f"{entry.owner}: {what} gave a {type(wrong).__name__}, not a {kind.__name__}", hint=_disable(entry)
        )
    return tuple(answer)


def _drain(answer: Any) -> Any:
    """Take everything from an iterable while the guard still watches."""
    return answer if isinstance(answer, Skip) else tuple(answer)


def _disable(entry: EntryPoint) -> str:
    return f"upgrade it, or do without it: VLLMRT_DISABLE_PLUGINS={entry.distribution}"
