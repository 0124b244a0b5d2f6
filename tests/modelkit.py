"""What tests of vllmrt itself do to tiny models, beyond `vllmrt.testing`."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import TYPE_CHECKING, Any

from vllmrt.testing.models import write_json, write_raw_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the header of a safetensors file and the bytes behind it."""
    blob = path.read_bytes()
    end = 8 + struct.unpack("<Q", blob[:8])[0]
    return json.loads(blob[8:end]), blob[end:]


def edit_header(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Let `edit` change the header of a safetensors file, and leave its tensors as they are."""
    header, data = read_header(path)
    edit(header)
    write_raw_safetensors(path, header, data)


def edit_json(path: Path, edit: Callable[[Any], object]) -> None:
    """Let `edit` change what a JSON file holds."""
    value = json.loads(path.read_text())
    edit(value)
    write_json(path, value)


def move_to_hub_cache(path: Path, cache: Path, commit: str = "0" * 40) -> tuple[Path, Path]:
    """Store a model's files as a Hugging Face cache does; return the snapshot's directory and the repository's."""
    repository = cache / "models--org--name"
    snapshot, blobs = repository / "snapshots" / commit, repository / "blobs"
    blobs.mkdir(parents=True)
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        name = file.relative_to(path)
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("../" * (len(name.parts) + 1) + f"blobs/{blob.name}")
    return snapshot, repository
