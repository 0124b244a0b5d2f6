"""Settings and variables that cannot be used, mean nothing, or contradict each other."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vllmrt import layers, paths
from vllmrt.doctor.page import Section
from vllmrt.errors import VllmrtError
from vllmrt.masking import place
from vllmrt.serve.engine import engine_variables, find_engine
from vllmrt.serve.environ import exposure_warnings, is_service_link

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vllmrt.doctor.page import Case
    from vllmrt.settings import Settings

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_REFERENCE = "docs/reference/settings.md lists every setting with its bounds"
_LIKE, _VERY_LIKE = 0.75, 0.88
"""How near a name has to be to be meant, as difflib measures it; the second where vLLM's own names are not known."""


def look(case: Case) -> Section:
    """Return what is set; of secrets only that they are."""
    settings, environ = case.settings, case.environ
    token = _token(settings)
    section = Section(
        {
            "settings": dict(case.layers.origins),
            "service_links": sorted(name for name, value in environ.items() if _is_link(name, value)),
            "hf_token": token is not None,
            "hf_token_from": token,
            "api_key": settings.api_key is not None,
            "proxies": {name: _proxy(name, environ[name]) for name in sorted(environ) if _is_proxy(name, environ)},
            "ld_preload": [word for word in re.split(r"[\s:]+", environ.get("LD_PRELOAD", "")) if word],
        }
    )
    _describe(section)
    for fault in case.layers.faults:
        section.add("setting-invalid", fault.message, fault.hint or _REFERENCE)
    _unknown(section, case)
    for message, remedy in [*_twice(environ), *_caches(environ)]:
        section.add("variables-disagree", message, remedy)
    _preloads(section)
    _exposure(section, settings)
    return section


def _describe(section: Section) -> None:
    facts = section.facts
    origins = [field if origin == field else f"{field} ({origin})" for field, origin in facts["settings"].items()]
    section.lines.append(f"settings that are set: {', '.join(origins) or 'none'}")
    token = f"set ({facts['hf_token_from']})" if facts["hf_token"] else "none"
    section.lines.append(f"Hugging Face token: {token} · API key: {'set' if facts['api_key'] else 'none'}")
    if facts["proxies"]:
        section.lines.append(f"proxies: {' '.join(f'{name}={value}' for name, value in facts['proxies'].items())}")
    if facts["ld_preload"]:
        section.lines.append(f"LD_PRELOAD: {' '.join(facts['ld_preload'])}")
    if facts["service_links"]:
        text = f"{len(facts['service_links'])} variables are Kubernetes' links to a Service called vllm; "
        section.notes.append(f"{text}vLLM does not get them, and enableServiceLinks: false in the pod ends them")


def _token(settings: Settings) -> str | None:
    """Return where the token comes from; whether the file is there, and never what is in it."""
    if settings.hf_token:
        return "HF_TOKEN"
    path = settings.hf_token_path
    with suppress(VllmrtError, OSError):
        path = path or (settings.hf_home or paths.user_cache().parent / "huggingface") / "token"
        return str(path) if path.is_file() else None
    return None


def _is_link(name: str, value: str) -> bool:
    return is_service_link(f"VLLM_{name.removeprefix('VLLMRT_')}" if name.startswith("VLLMRT_") else name, value)


def _is_proxy(name: str, environ: Mapping[str, str]) -> bool:
    return name.lower() in _PROXIES and bool(environ[name])


def _proxy(name: str, value: str) -> str:
    return value if name.lower() == "no_proxy" else place(value)


def _unknown(section: Section, case: Case) -> None:
    """Name the variables that neither vllmrt nor vLLM knows: vLLM warns of each, and a typo is worse than that."""
    ours = {name for row in layers.rows() for name in row.names}
    theirs: frozenset[str] = frozenset()
    with suppress(VllmrtError):
        theirs = engine_variables(find_engine(case.settings, case.environ))
    from difflib import get_close_matches

    for name, value in sorted(case.environ.items()):
        if not name.startswith(("VLLM_", "VLLMRT_")) or name in ours | theirs or _is_link(name, value):
            continue
        is_ours = name.startswith("VLLMRT_")
        near = get_close_matches(name, ours | theirs, n=1, cutoff=_LIKE if theirs or is_ours else _VERY_LIKE)
        if near or theirs or is_ours:
            who = "vllmrt does not know" if is_ours else "neither vllmrt nor this vLLM knows"
            rest = _REFERENCE if is_ours else "unset it, unless something else reads it"
            remedy = f"did you mean {near[0]}?" if near else rest
            section.add("variable-unknown", f"{who} the variable {name}", remedy)


def _twice(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield settings that two of their variables give different values."""
    for row in layers.rows():
        names = [name for name in row.names if environ.get(name)]
        links = [name for name in names if _is_link(name, environ[name])]
        if len({environ[name] for name in names}) > 1 and not links:
            yield f"{' and '.join(names)} have different values; {names[0]} counts", f"unset {' or '.join(names[1:])}"


def _caches(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield caches of huggingface_hub that another variable overrules (huggingface_hub/constants.py)."""
    cache, home = environ.get("HF_HUB_CACHE"), environ.get("HF_HOME")
    others = {"HUGGINGFACE_HUB_CACHE": environ.get("HUGGINGFACE_HUB_CACHE"), "HF_HOME": home and f"{home}/hub"}
    for name, other in others.items():
        if cache and other and os.path.realpath(cache) != os.path.realpath(other):
            message = f"HF_HUB_CACHE is {cache}, and {name} means {other}: HF_HUB_CACHE counts"
            yield message, f"unset HF_HUB_CACHE or {name}, or let them agree"


def _preloads(section: Section) -> None:
    for word in section.facts["ld_preload"]:
        if "/" in word and not Path(word).exists():
            message = f"LD_PRELOAD names {word}, which does not exist: every program complains of it"
            section.add("preload-missing", message, "unset LD_PRELOAD, or correct it")


def _exposure(section: Section, settings: Settings) -> None:
    try:
        section.notes += exposure_warnings(settings)
    except VllmrtError as error:
        section.add("exposed", error.message, error.hint)
