"""A listing beside what is published: what vLLM loads of it, and what of that is here already.

A fetch, a dry run and a plan all begin with it, so that they say the same; it writes nothing itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from vllmrt.errors import SourceError
from vllmrt.locking import taken_away
from vllmrt.paths import check_listing, is_ours, safe_join
from vllmrt.resolve.reuse import Reuse, narrow, plan_reuse
from vllmrt.validate.reading import TEXT_LIMIT
from vllmrt.validate.selection import SAFETENSORS_INDEX, Selection, select

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vllmrt.resolve.store import Published
    from vllmrt.settings import Settings
    from vllmrt.types import Candidate, RemoteFile

    FetchIndex = Callable[[Reuse, RemoteFile], Path]


class Comparison(NamedTuple):
    """How a listing stands to what is published.

    Attributes:
        selection: what vLLM loads of the listing.
        plan: what of that is here, and what is to be fetched.
    """

    selection: Selection
    plan: Reuse


def compare(
    published: Published | None,
    candidate: Candidate,
    settings: Settings,
    *,
    source: str,
    fetch_index: FetchIndex | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Compare what a candidate lists with what is published.

    Args:
        published: the model as it is here; None where it is not.
        candidate: what the source offers.
        settings: patterns, the store.
        source: its name.
        fetch_index: given how the whole listing divides, and the index of the weights, which is not here, it fetches
            the index and returns where it lies. Without it all weights of the kind are taken to count.
        note: told in words which file is read.

    Raises:
        SourceError: the listing cannot be used.
    """
    files = _usable(candidate.files, settings.store)
    index = None if settings.include else _index(files)
    whole = plan_reuse(published, files, source=source, location=candidate.location, note=note)
    weight_map = None
    if index and published and index.path in whole.reused:
        weight_map = _weight_map(published.path / index.path)
    elif index and fetch_index:
        weight_map = _weight_map(fetch_index(whole, index))
    selection = select(files, weight_map=weight_map, include=settings.include, exclude=settings.exclude)
    return Comparison(selection, narrow(whole, selection.wanted, published))


def _usable(files: Sequence[RemoteFile], root: Path) -> tuple[RemoteFile, ...]:
    """Refuse names that leave the model; drop the store's own, which are there where a published model was uploaded."""
    kept = tuple(file for file in files if not is_ours(file.path))
    for file in kept:
        safe_join(root, file.path)
    check_listing(file.path for file in kept)
    return kept


def _index(files: Sequence[RemoteFile]) -> RemoteFile | None:
    """Return the index of the weights, which says which weights count."""
    index = next((file for file in files if file.path == SAFETENSORS_INDEX), None)
    if index and index.size > TEXT_LIMIT:
        text = f"{SAFETENSORS_INDEX} is {index.size:,} bytes long, at most {TEXT_LIMIT:,} make sense"
        raise SourceError(text, hint="fetch it from another source, or name its files with --include")
    return index


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def _weight_map(path: Path) -> frozenset[str]:
    try:
        return frozenset(msgspec.json.decode(path.read_bytes(), type=_Index).weight_map.values())
    except FileNotFoundError:
        raise taken_away(SAFETENSORS_INDEX) from None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"{SAFETENSORS_INDEX} cannot be understood: {error}") from None
