"""The conformance of a validator, and what a signature is worth; keys and signatures are made by OpenSSF's own tool."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from vllmrt_model_signing import SIGNATURE, Signed

from vllmrt.testing import ValidatorConformance, make_model, tree_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllmrt.types import Finding


def make_keys(folder: Path) -> tuple[Path, Path]:
    """Write a private key and its public key."""
    folder.mkdir()
    key, private, public = ec.generate_private_key(ec.SECP256R1()), folder / "key.pem", folder / "key.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def sign(model: Path, private: Path, *options: str) -> Path:
    """Sign a model with the command that its publisher would use."""
    command = [sys.executable, "-m", "model_signing", "sign", "key", str(model), *options]
    command += ["--signature", str(model / SIGNATURE), "--private_key", str(private)]
    subprocess.run(command, check=True, capture_output=True)
    return model


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_keys(tmp_path_factory.mktemp("keys") / "ours")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]) -> Path:
    model = make_model(tmp_path_factory.mktemp("signed") / "model")
    (model / ".gitattributes").write_text("*.safetensors filter=lfs")
    return sign(model, keys[0])


@pytest.fixture
def model(signed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed, tmp_path / "model"))


class TestConformance(ValidatorConformance):
    name = "model-signing"

    @pytest.fixture(autouse=True)
    def public_key(self, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODEL_SIGNING_KEY", str(keys[1]))

    @pytest.fixture
    def model(self, signed: Path) -> Path:
        return signed

    @pytest.fixture
    def broken(self, tmp_path: Path) -> Path:
        return make_model(tmp_path / "unsigned")


def check(model: Path, public: Path | None) -> tuple[Finding, ...]:
    return Signed(public).check(tree_of(model))


def change(model: Path) -> None:
    path = model / "config.json"
    path.write_bytes(path.read_bytes().replace(b"llama", b"mamba"))


def resign_part(model: Path) -> None:
    other = make_model(model.with_name("other"), layers=1)
    shutil.copy(other / "config.json", model / "config.json")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed": (change, "Hash mismatch for config.json"),
    "of another model": (resign_part, "Hash mismatch for config.json"),
    "added": (lambda model: (model / "modeling.py").write_text("import os"), "Extra files"),
    "added below": (lambda model: shutil.copytree(model, model / "sub"), "Extra files"),
    "removed": (lambda model: (model / "tokenizer.json").unlink(), "Missing files"),
    "renamed": (lambda model: (model / "tokenizer.json").rename(model / "t.json"), "Missing files"),
    "signature cut": (lambda model: (model / SIGNATURE).write_text("{}"), ""),
    "signature garbled": (lambda model: (model / SIGNATURE).write_bytes(b"\0\xff"), ""),
}


def test_a_signed_model_passes(model: Path, keys: tuple[Path, Path]) -> None:
    assert check(model, keys[1]) == ()


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_was_changed_since_is_refused(model: Path, keys: tuple[Path, Path], name: str) -> None:
    edit, words = CHANGES[name]
    edit(model)
    (finding,) = check(model, keys[1])
    assert finding.code == "signature-wrong"
    assert words in finding.message


def test_the_wrong_key_is_refused(model: Path, tmp_path: Path) -> None:
    (finding,) = check(model, make_keys(tmp_path / "other")[1])
    assert "Key mismatch" in finding.message


def test_a_model_that_another_key_has_signed_is_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    model = sign(make_model(tmp_path / "theirs"), make_keys(tmp_path / "other")[0])
    assert [finding.code for finding in check(model, keys[1])] == ["signature-wrong"]


def test_what_the_signer_left_out_is_his_choice_and_nobody_elses(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    """By default git's own files are left out."""
    for options, passes in (((), True), (("--no-ignore-git-paths",), False)):
        model = sign(make_model(tmp_path / f"model{len(options)}"), keys[0], *options)
        assert check(model, keys[1]) == ()
        (model / ".gitignore").write_text("x")
        assert (check(model, keys[1]) == ()) is passes


def test_without_a_key_nothing_passes(model: Path) -> None:
    assert [finding.code for finding in check(model, None)] == ["no-key"]


def test_the_note_of_vllmrt_and_the_links_of_a_cache_do_not_matter(
    model: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    (model / ".vllmrt.json").write_text("{}")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in model.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert check(snapshot, keys[1]) == ()


def test_another_key_is_another_validator_so_that_nothing_counts_as_checked(
    tmp_path: Path, keys: tuple[Path, Path], model: Path
) -> None:
    assert Signed(keys[1]).name != Signed(make_keys(tmp_path / "other")[1]).name
    change(model)
    assert Signed(keys[1]).check(replace(tree_of(model), unchanged=True)) == ()
