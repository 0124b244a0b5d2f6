"""Print tests/public_api.txt: everything that docs/compatibility.md promises to plugins, a line for each fact."""

from __future__ import annotations

import dataclasses
import inspect
from enum import Enum
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

EVERYTHING: tuple[str, ...] = ()
PUBLIC = {
    "vllmrt": ("hookimpl",),
    "vllmrt.hookspecs": EVERYTHING,
    "vllmrt.types": EVERYTHING,
    "vllmrt.errors": EVERYTHING,
    "vllmrt.transfer.http": EVERYTHING,
    "vllmrt.transfer.connection": ("Link", "Origin", "Pool", "proxy_headers"),
    "vllmrt.identity": ("identity_hash",),
    "vllmrt.hubcache": ("home", "repository", "snapshots"),
    "vllmrt.discovery": ("MODELS", "EntryPoint", "entry_points", "normalise"),
    "vllmrt.gpu.devices": ("is_named",),
    "vllmrt.gpu.throttle": ("words",),
    "vllmrt.testing": EVERYTHING,
    "vllmrt.testing.conformance": ("Conformance",),
    "vllmrt.testing.loopback": ("Listening",),
}
"""Names by module; of a module with EVERYTHING those of its ``__all__``, or else all that it defines.

`vllmrt.settings.Settings` is public too; docs/reference/settings.md has its fields.
"""


def names(module: str) -> list[str]:
    """Return the public names of a module."""
    loaded = import_module(module)
    defined = [name for name, value in vars(loaded).items() if getattr(value, "__module__", None) == module]
    found = PUBLIC[module] or getattr(loaded, "__all__", None) or defined
    return sorted(name for name in found if not name.startswith("_"))


def facts() -> Iterator[str]:
    """Yield the lines."""
    for module in PUBLIC:
        for name in names(module):
            value = getattr(import_module(module), name)
            yield from (
                _class(f"{module}.{name}", value) if inspect.isclass(value) else [_value(f"{module}.{name}", value)]
            )


def _value(name: str, value: Any) -> str:
    if inspect.isfunction(value):
        return f"{name}{inspect.signature(value)}"
    return f"{name} = {value!r}" if isinstance(value, str) else name


def _class(name: str, cls: type[Any]) -> Iterator[str]:
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    yield f"class {name}({bases})"
    if issubclass(cls, Enum):
        yield from (f"{name}.{one.name} = {one.value!r}" for one in cls)
        return
    fields = _fields(cls)
    yield from (f"{name}.{field}" for field in fields.values())
    made = vars(cls).get("__init__")
    if inspect.isfunction(made) and not dataclasses.is_dataclass(cls) and not getattr(cls, "_is_protocol", False):
        yield f"{name}.__init__{inspect.signature(made)}"
    for attribute in sorted(vars(cls)):
        if not attribute.startswith("_") and attribute not in fields:
            yield f"{name}.{_attribute(attribute, inspect.getattr_static(cls, attribute))}"


def _fields(cls: type[Any]) -> dict[str, str]:
    """Return what a value is made of, and what a protocol asks for: name, type and default."""
    if dataclasses.is_dataclass(cls):
        return {one.name: _field(one.name, one.type, _default(one)) for one in dataclasses.fields(cls)}
    defaults = getattr(cls, "_field_defaults", vars(cls))
    told = {name: kind for name, kind in vars(cls).get("__annotations__", {}).items() if not name.startswith("_")}
    return {name: _field(name, kind, defaults.get(name, dataclasses.MISSING)) for name, kind in told.items()}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _field(name: str, kind: Any, default: Any) -> str:
    shown = kind if isinstance(kind, str) else getattr(kind, "__forward_arg__", kind)
    return f"{name}: {shown}" if default is dataclasses.MISSING else f"{name}: {shown} = {default!r}"


def _attribute(name: str, value: Any) -> str:
    if isinstance(value, property):
        return f"{name}: property"
    function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    if inspect.isfunction(function):
        return name if name.startswith("test_") else f"{name}{inspect.signature(function)}"
    return f"{name} = {value!r}" if isinstance(value, str | int | float) else f"{name}: {type(value).__name__}"


if __name__ == "__main__":
    print("\n".join(facts()))
