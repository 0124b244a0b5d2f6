"""A vllmrt validator: a model has to carry an OpenSSF signature (``model.sig``) that a key of yours has made."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import vllmrt
from vllmrt.types import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllmrt.types import ModelTree, Validator

SIGNATURE = "model.sig"
OURS = ".vllmrt.json"  # vllmrt writes it beside a model that it has fetched


class Signed:
    """Refuses what is not signed, and every file that was changed, added or removed since."""

    def __init__(self, key: Path | None) -> None:
        self._key = key
        # vllmrt notes the names of the validators that a model has passed: with another key it is judged anew
        digest = hashlib.sha256(key.read_bytes()).hexdigest()[:16] if key else "no key"
        self.name = f"openssf-signature ({digest})"

    def check(self, tree: ModelTree) -> tuple[Finding, ...]:
        """Return what is wrong with the signature, or with what was signed."""
        if self._key is None:
            return _refused("no key to check signatures with: set MODEL_SIGNING_KEY to a public key", "no-key")
        signature = tree.path / SIGNATURE
        if not signature.is_file():
            return _refused("the model is not signed", "unsigned")
        return () if tree.unchanged else _verified(tree.path, signature, self._key)


def _verified(model: Path, signature: Path, key: Path) -> tuple[Finding, ...]:
    from model_signing import hashing, verifying

    # links are those of a cache, and vllmrt itself has seen that none leads out of it
    content = hashing.Config().set_allow_symlinks(True)
    content.set_ignored_paths(paths=[signature, model / OURS], ignore_git_paths=False)
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=key).set_hashing_config(content)
    try:
        verifier.verify(model, signature)
    except Exception as error:  # noqa: BLE001 - the library has no class of its own, and any error refuses
        # the library's words are lists of names, which are anybody's, and digests as bytes
        words = re.sub(r"[^ -~]|[][\\\"']", "", str(error).partition(": Expected")[0])[:300]
        return _refused(words or type(error).__name__, "signature-wrong")
    return ()


def _refused(message: str, code: str) -> tuple[Finding, ...]:
    return (Finding(Severity.ERROR, message=message, code=code, file=SIGNATURE),)


@vllmrt.hookimpl
def vllmrt_validators() -> Iterator[Validator]:
    """Offer the one validator."""
    key = os.environ.get("MODEL_SIGNING_KEY")
    yield Signed(Path(key) if key else None)
