"""Get a model onto this machine, prove that it is whole, and hand over to ``vllm serve``.

For plugin authors: `vllmrt.hookimpl` marks hook implementations (see `vllmrt.hookspecs`), `vllmrt.types` holds the
values that cross the boundary, `vllmrt.errors` what a source may raise. Everything else is internal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllmrt.hookspecs import hookimpl

    __version__: str

__all__ = ["__version__", "hookimpl"]


def __getattr__(name: str) -> object:
    """Load pluggy and the distribution's metadata only for those who ask."""
    if name == "hookimpl":
        from vllmrt.hookspecs import hookimpl

        return hookimpl
    if name == "__version__":
        from importlib.metadata import version

        return version("vllmrt")
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
