"""Settings from their layers: flags over ``VLLMRT_*`` over the old names over the settings file over the defaults."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin

import msgspec

from vllmrt import paths
from vllmrt.errors import ConfigError
from vllmrt.settings import Settings, Var, without_user

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_TRUTH = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
_OF_THE_HUB = _TRUTH | {"on": True, "off": False}
_ZERO_OR_ONE = {"1": True, "0": False}
_FIELDS = Settings.__struct_fields__
_SERVICE_LINK = re.compile(r"^(tcp|udp|sctp)://")


class Row(NamedTuple):
    """A row of the settings table, taken apart.

    Attributes:
        field: the attribute of `Settings`.
        annotation: the type with its bounds, as msgspec converts to it.
        kind: the bare type: int, float, bool, str, Path, a tuple or a Literal.
        default: the value where nothing sets it.
        var: the rest of the row.
    """

    field: str
    annotation: Any
    kind: Any
    default: Any
    var: Var

    @property
    def names(self) -> tuple[str, ...]:
        """The environment variables that set it, the one that wins first."""
        old, older = self.var.old, self.var.older
        ours = f"VLLMRT_{old.removeprefix('VLLM_') if old else self.field.upper()}"
        return tuple(name for name in (ours, old, older) if name)

    @property
    def truth(self) -> dict[str, bool]:
        """What a boolean may be called, in lower case."""
        return _ZERO_OR_ONE if self.var.strict else _OF_THE_HUB if self.var.hub else _TRUTH

    @property
    def bounds(self) -> str:
        """What a value has to be, in words that complete "is not …"."""
        if self.kind is bool:
            return "0 or 1" if self.var.strict else f"one of {', '.join(self.truth)}"
        if get_origin(self.kind) is tuple:
            item = get_args(self.kind)[0]
            literal = f"of {', '.join(get_args(item))}" if get_origin(item) is Literal else "of names"
            what = self._meta("description") or literal
            return f"a comma-separated list {what}"
        if get_origin(self.kind) is Literal:
            return f"one of {', '.join(get_args(self.kind))}"
        if self.kind in {int, float}:
            return f"{'an integer' if self.kind is int else 'a number'}{self._limits()}"
        return "a path" if self.kind is Path else "one word" if self._meta("pattern") else "a printable text"

    def _limits(self) -> str:
        low, high, above = self._meta("ge"), self._meta("le"), self._meta("gt")
        least = f"above {above}" if above is not None else f"from {low}" if high is not None else f"of {low} or more"
        return f" {least}{f' to {high}' if high is not None else ''}"

    def _meta(self, name: str) -> Any:
        found = (getattr(meta, name, None) for meta in self.annotation.__metadata__)
        return next((value for value in found if value is not None), None)


class Layers(NamedTuple):
    """The settings of one run.

    Attributes:
        settings: the snapshot.
        origins: the flag, variable or file that set a field; what is not in it is a default.
        warnings: what looks like a mistake, a line each.
        faults: what cannot be used; the defaults stand in its place. Only `read` gives any.
    """

    settings: Settings
    origins: dict[str, str]
    warnings: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()


class Fault(NamedTuple):
    """A value that cannot be used, or a name that means nothing.

    Attributes:
        message: which, and why; no secrets.
        hint: what its author may have meant or may do, where that can be said.
    """

    message: str
    hint: str | None = None

    def __str__(self) -> str:
        """Return both on one line."""
        return f"{self.message}; {self.hint}" if self.hint else self.message


class _File(NamedTuple):
    path: Path
    values: dict[str, Any]


class _Raw(NamedTuple):
    value: Any
    origin: str


def rows() -> Iterator[Row]:
    """Yield the rows of the settings table, in its order."""
    defaults = Settings.__struct_defaults__
    for (field, annotation), default in zip(Settings.__annotations__.items(), defaults, strict=True):
        yield Row(field, annotation, _bare(annotation), default, annotation.__metadata__[-1])


def load(
    environ: Mapping[str, str],
    flags: Mapping[str, str | None] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Layers:
    """Build the settings of one run.

    Args:
        environ: the environment; an empty value counts as unset, as in ``${VAR:-default}``, but for `Var.blank`.
        flags: values of the command line by field, as text; None unsets what a lower layer says.
        defaults: values by field that stand in for those of the table.

    Raises:
        ConfigError: with a line for every value that cannot be used: variable, value and bound.
    """
    layers = read(environ, flags, defaults)
    if layers.faults:
        message = "\n".join(map(str, layers.faults))
        raise ConfigError(message, hint="docs/reference/settings.md lists every setting with its bounds")
    return layers


def read(
    environ: Mapping[str, str],
    flags: Mapping[str, str | None] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Layers:
    """Build the settings as `load` does, but without what cannot be used: it is among the faults of the answer."""
    file, faults = _File(Path(os.devnull), {}), []
    try:
        file = _settings_file(environ, flags or {})
    except ConfigError as error:
        faults.append(Fault(error.message, error.hint))
    values: dict[str, Any] = dict(defaults or {})
    origins: dict[str, str] = {}
    faults += [Fault(f"{file.path}: {one.message}", one.hint) for one in _unknown(file.values, _FIELDS)]
    for row in rows():
        raw = _find(row, environ, flags or {}, file)
        if raw is None:
            continue
        try:
            values[row.field], origins[row.field] = _convert(row, raw.value), raw.origin
        except (msgspec.ValidationError, ValueError, KeyError):
            faults.append(_fault(row, raw))
    ours = (name for name in environ if name.startswith("VLLMRT_"))
    warnings = _unknown(ours, [row.names[0] for row in rows()])
    return Layers(Settings(**values), origins, tuple(map(str, warnings)), tuple(faults))


def _find(row: Row, environ: Mapping[str, str], flags: Mapping[str, str | None], file: _File) -> _Raw | None:
    if row.field in flags:
        value = flags[row.field]
        return None if value is None else _Raw(value, row.var.flag or "the command line")
    for name in row.names:
        if environ.get(name) or (row.var.blank and name in environ):
            return _Raw(environ[name], name)
    if row.field in file.values:
        return _Raw(file.values[row.field], f"{row.field} in {file.path}")
    return None


def _convert(row: Row, value: Any) -> Any:
    if not all(item.isprintable() for item in _texts(value)):
        raise ValueError(row.field)
    if row.kind is bool and value in (0, 1):
        return bool(value)
    if isinstance(value, str):
        value = _from_text(row, value)
    if row.kind is Path and isinstance(value, str):
        return Path(os.path.abspath(os.path.expanduser(value)))  # noqa: PTH100, PTH111 - pathlib has no such absolute()
    return msgspec.convert(value, row.annotation, strict=not isinstance(value, str))


def _texts(value: Any) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def _from_text(row: Row, text: str) -> Any:
    if row.kind is int and not text.lstrip("+-").isdecimal():
        raise ValueError(text)  # msgspec takes 1e3 and 5.0 too
    if row.kind is bool:
        return row.truth[text.lower()]
    if get_origin(row.kind) is tuple:
        return tuple(item.strip() for item in text.split(",") if item.strip())
    return text.upper() if get_origin(row.kind) is Literal else text


def _fault(row: Row, raw: _Raw) -> Fault:
    if row.var.secret:
        return Fault(f"{raw.origin} is not {row.bounds}")
    message = f"{raw.origin}={ascii(without_user(raw.value))[:80]} is not {row.bounds}"
    if not _SERVICE_LINK.match(str(raw.value)):
        return Fault(message)
    return Fault(
        f"{message}: that is Kubernetes' link to a Service of that name",
        "set enableServiceLinks: false in the pod, or give the Service another name",
    )


def _settings_file(environ: Mapping[str, str], flags: Mapping[str, str | None]) -> _File:
    """Read the file that was named, or the user's; never one from the current directory."""
    named = flags.get("settings_file") or environ.get("VLLMRT_SETTINGS_FILE")
    if named and not named.isprintable():
        raise ConfigError(f"settings file {named!a} is not a path")
    path = Path(named) if named else None
    try:
        path = path.expanduser() if path else _default_file()
        if not path.is_file():
            if named or (path.exists() and str(path) != os.devnull):
                raise ConfigError(f"settings file {path} does not exist, or is no file")
            return _File(path, {})
        import tomllib

        return _File(path, tomllib.loads(path.read_bytes().decode()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"settings file {path} cannot be read: {error}") from None
    except RuntimeError as error:
        raise ConfigError(f"settings file {path}: {error}") from None


def _default_file() -> Path:
    try:
        return paths.user_settings_file()
    except ConfigError:  # a user without a home has no settings file either
        return Path(os.devnull)


def _unknown(names: Iterable[str], known: Sequence[str]) -> list[Fault]:
    unknown = [name for name in names if name not in known]
    if not unknown:
        return []
    from difflib import get_close_matches

    near = {name: get_close_matches(name, known, n=1) for name in unknown}
    return [
        Fault(f"no setting is called {name!a}", f"did you mean {near[name][0]}?" if near[name] else None)
        for name in unknown
    ]


def _bare(annotation: Any) -> Any:
    """Take `Annotated` and the ``| None`` of an unset default away."""
    kind = get_args(annotation)[0]
    if type(None) in get_args(kind):
        kind = next(part for part in get_args(kind) if part is not type(None))
    return get_args(kind)[0] if hasattr(kind, "__metadata__") else kind
