"""The pages for each hook: their signatures are the code's, and what they show works."""

from __future__ import annotations

import ast
import hashlib
import json
from typing import Any

import pytest
from mdkit import ROOT, blocks

from vllmrt import hookspecs
from vllmrt.settings import Settings
from vllmrt.testing import ByteServer, make_model, tree_of
from vllmrt.types import GpuStatus, ModelRequest, ProcessInfo, Severity, Skip, Verdict

PAGES = {
    "vllmrt_sources": "sources",
    "vllmrt_gpu_probes": "gpu-probes",
    "vllmrt_validators": "validators",
    "vllmrt_classify_process": "classifiers",
}
REQUEST = ModelRequest("org/name")


def python(page: str) -> list[str]:
    shown = [block.text for block in blocks(ROOT / "docs" / "howto" / f"{page}.md") if block.language == "python"]
    assert shown
    return shown


def run(page: str, number: int) -> dict[str, Any]:
    """Run one block of a page, and return what it defines."""
    defined: dict[str, Any] = {}
    exec(compile(python(page)[number], page, "exec"), defined)  # noqa: S102 - that is the test
    return defined


def specified() -> dict[str, str]:
    module = ast.parse((ROOT / "src" / "vllmrt" / "hookspecs.py").read_text())
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    return {
        node.name: f"def {node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}: ..."
        for node in functions
    }


def test_every_hook_has_a_page_that_begins_with_its_exact_signature() -> None:
    assert set(PAGES) == set(specified()) == {name for name in vars(hookspecs) if name.startswith("vllmrt_")}
    for hook, page in PAGES.items():
        assert python(page)[0].strip() == specified()[hook]


def test_the_share_offers_a_directory_or_says_why_not() -> None:
    (source,) = run("sources", 1)["vllmrt_sources"]()
    assert source.probe(REQUEST) == Skip("nothing at /mnt/models/org/name", hint="mount the share")


def test_the_mirror_lists_and_opens_what_a_server_has() -> None:
    files = {"/org/name/config.json": b'{"a": 1}', "/org/name/model.safetensors": bytes(range(256)) * 40}
    with ByteServer(files) as server:
        listed = [
            {
                "path": path.rpartition("/")[2],
                "size": len(data),
                "etag": server.etag(path),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
            for path, data in files.items()
        ]
        server.files["/org/name/index.json"] = json.dumps(listed).encode()
        (source,) = run("sources", 2)["vllmrt_sources"](Settings(model_url=server.url("").rstrip("/")))
        assert isinstance(source.probe(ModelRequest("org/other")), Skip)
        (candidate,) = source.probe(REQUEST)
        (_, weights) = candidate.files
        assert (weights.size, weights.digest.value) == (10240, listed[1]["sha256"])
        opened = source.open(candidate, weights, 250, 262)
        buffer = bytearray(12)
        assert opened.readinto(memoryview(buffer)) == 12
        opened.close()
        assert bytes(buffer) == files["/org/name/model.safetensors"][250:262]


def test_the_probe_knows_devices_by_index_and_uuid() -> None:
    page = run("gpu-probes", 1)
    (probe,) = page["vllmrt_gpu_probes"]()
    assert [type(gpu) for gpu in probe.read(())] == [GpuStatus, GpuStatus]
    assert [gpu.index for gpu in probe.read(("GPU-acme1",))] == [gpu.index for gpu in probe.read(("1",))] == [1]
    assert isinstance(page["Inventory"]([]).read(()), Skip)


def test_the_validator_finds_what_it_is_for(tmp_path: Any) -> None:
    (validator,) = run("validators", 1)["vllmrt_validators"]()
    model = make_model(tmp_path / "model")
    (finding,) = validator.check(tree_of(model))
    assert (finding.severity, finding.code) == (Severity.ERROR, "acme-no-licence")
    (model / "LICENSE").touch()
    assert validator.check(tree_of(model)) == ()


@pytest.mark.parametrize(("parent", "verdict"), [("acme-supervisor", Verdict.PROTECTED), ("systemd", None)])
def test_the_classifier_protects_what_its_supervisor_started(parent: str, verdict: Verdict | None) -> None:
    above = ProcessInfo(2, uid=0, start_ticks=1, exe=None, argv=(parent,), title="")
    process = ProcessInfo(3, uid=0, start_ticks=2, exe=None, argv=("vllm", "serve"), title="", ancestors=(above,))
    assert run("classifiers", 1)["vllmrt_classify_process"](process) is verdict
