"""The benchmarks' own parts: what they measure is not asserted anywhere, that they measure is."""

from __future__ import annotations

import http.client
import os
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from bench import delay, measure, models, s3files, tools
from bench.measure import Contender, Measured, Run
from bench.table import Budget, Table, summary

from vllmrt.settings import Settings
from vllmrt.testing import tree_of
from vllmrt.types import Severity
from vllmrt.validate import validators

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENVIRON = {"PATH": os.environ["PATH"]}


def python(script: str, name: str = "python") -> Contender:
    return Contender(name, [sys.executable, "-c", script], ENVIRON)


def row(name: str, *walls: float, memory: int = 1_000_000) -> Measured:
    return Measured(Contender(name, [name], {}), [Run(wall, wall + 1, wall / 2, memory) for wall in walls])


def test_a_run_knows_memory_and_cpu_of_the_whole_tree(tmp_path: Path) -> None:
    child = "held = bytearray(64 << 20); import time; begin = time.process_time()\n"
    child += "while time.process_time() < begin + 0.3: pass"
    found = measure.run(python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"), tmp_path)
    assert found.cpu >= 0.3
    assert 0.3 <= found.wall <= found.durable
    assert 64 << 20 <= found.memory < 256 << 20


def test_the_memory_of_a_run_is_not_that_of_who_started_it(tmp_path: Path) -> None:
    held = b"\1" * (200 << 20)
    found = measure.run(python("import time; time.sleep(0.3)"), tmp_path)
    assert found.memory < len(held) // 2


def test_all_take_turns_and_the_destination_is_empty_each_time(tmp_path: Path) -> None:
    out, diary = tmp_path / "out", tmp_path / "diary"
    script = "import os, sys; os.mkdir({!r}); open({!r}, 'a').write({!r})"
    both = [python(script.format(str(out / "made"), str(diary), name), name) for name in "ab"]
    assert [len(one.runs) for one in measure.take_turns(both, 3, out)] == [3, 3]
    assert diary.read_text() == "ababab"
    assert not out.exists()


def test_who_is_missing_or_fails_is_a_row_that_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contenders = [python("pass", "ours"), Contender("gone", None, {}), python("raise SystemExit('broken')", "bad")]
    rows = measure.take_turns(contenders, 2, tmp_path / "out")
    assert [one.failed for one in rows] == ["", "not found", "failed"]
    said = capsys.readouterr().err
    assert "gone: not found" in said
    assert "bad, run 1: ended with 1: broken" in said
    lines = Table("title", "note", rows, budgets=[Budget("as fast as it", 1, "bad")]).markdown().splitlines()
    assert any(line.startswith("| gone | - | not found |") for line in lines)


def test_a_command_that_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "LONGEST", 0.2)
    with pytest.raises(RuntimeError, match="ended with -9"):
        measure.run(python("import time; time.sleep(60)"), tmp_path)


def test_the_table_has_medians_and_ratios() -> None:
    table = Table("title", "note", [row("ours", 1, 2, 90), row("rival", 5, 7, 6)], size=4_000_000_000)
    cells = [line.strip("| ").split(" | ") for line in table.markdown().splitlines() if " | " in line]
    assert cells[2] == ["ours", "-", "2.00", "3.00", "2,000", "1.00", "1", "1.00"]
    assert cells[3] == ["rival", "-", "6.00", "7.00", "667", "3.00", "1", "3.00"]


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget("3 times", 3, "rival"), "3.00 times | kept"),
        (Budget("4 times", 4, "rival"), "3.00 times | **missed**"),
        (Budget("no more than shown", None, "rival"), "3.00 times | -"),
        (Budget("half of it", 0.5, "rival", at_most=True), "0.33 times | kept"),
        (Budget("a quarter of it", 0.25, "rival", at_most=True), "0.33 times | **missed**"),
        (Budget("2 s", 2000), "2000 ms | kept"),
        (Budget("1 s", 1000), "2000 ms | **missed**"),
        (Budget("memory", 9, field="memory"), "10 MB | **missed**"),
        (Budget("nobody", 1, "gone"), "not measured | -"),
    ],
    ids=lambda value: value.text if isinstance(value, Budget) else "",
)
def test_a_budget_is_kept_or_missed(budget: Budget, said: str) -> None:
    rows = [row("ours", 2, memory=10_000_000), row("rival", 6), Measured(Contender("gone", None, {}), [], "not found")]
    line = summary([Table("title", "note", rows, budgets=[budget])]).splitlines()[-1]
    assert line == f"| title | {budget.text} | {said} |"


def errors(path: Path) -> set[str]:
    found = (validator.check(tree_of(path)) for validator in validators(Settings()))
    return {one.code for findings in found for one in findings if one.severity is Severity.ERROR}


@pytest.mark.parametrize("sparse", [False, True])
def test_its_models_are_whole(tmp_path: Path, *, sparse: bool) -> None:
    model = tmp_path / "model"
    size = models.make(model, 3, 10_000, sparse=sparse)
    assert size == sum(file.stat().st_size for file in model.iterdir()) > 30_000
    assert errors(model) == set()
    os.truncate(model / "model-00002-of-00003.safetensors", 9_999)
    assert errors(model) == {"safetensors-truncated"}


def test_credentials_and_settings_of_the_user_stay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "HF_TOKEN", "VLLM_MODEL", "https_proxy", "RCLONE_CONFIG", "R2_BUCKET"):
        monkeypatch.setenv(name, "mine")
    assert "mine" not in tools.environ(tmp_path).values()


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[http.client.HTTPConnection]:
    directory = tmp_path / "bucket" / "a&b"
    directory.mkdir(parents=True)
    for number in range(s3files.PAGE + 1):
        (directory / f"{number:04}").write_bytes(b"content")
    handler = type("Handler", (s3files.Handler,), {"root": tmp_path})
    with s3files.Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
        yield connection
        connection.close()
        server.shutdown()
        thread.join()


def ask(s3: http.client.HTTPConnection, path: str, **headers: str) -> tuple[int, bytes]:
    s3.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = s3.getresponse()
    return answer.status, answer.read()


def test_the_listing_has_pages(s3: http.client.HTTPConnection) -> None:
    name = "{http://s3.amazonaws.com/doc/2006-03-01/}"
    first = ET.fromstring(ask(s3, "/bucket?list-type=2&prefix=a%26b/")[1])  # noqa: S314 - it is our own
    token = first.findtext(f"{name}NextContinuationToken")
    rest = ET.fromstring(ask(s3, f"/bucket?prefix=a%26b/&continuation-token={token.replace('&', '%26')}")[1])  # noqa: S314
    keys = [key.text for page in (first, rest) for key in page.iter(f"{name}Key")]
    assert keys == [f"a&b/{number:04}" for number in range(s3files.PAGE + 1)]
    assert [page.findtext(f"{name}IsTruncated") for page in (first, rest)] == ["true", "false"]


def test_an_object_has_ranges_and_a_version(s3: http.client.HTTPConnection) -> None:
    s3.request("HEAD", "/bucket/a&b/0000")
    answer = s3.getresponse()
    answer.read()
    version = answer.headers["ETag"]
    assert ask(s3, "/bucket/a&b/0000", Range="bytes=1-3", If_Match=version) == (206, b"ont")
    assert ask(s3, "/bucket/a&b/0000", If_Match='"other"')[0] == 412
    assert ask(s3, "/bucket/a&b/none")[0] == 404


def test_the_wire_loses_what_nobody_takes_and_goes_on() -> None:
    here, source = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    nobody = os.open(os.devnull, os.O_RDONLY)
    with here, source:
        for packet in (b"first", b"second"):
            here.send(packet)
        here.shutdown(socket.SHUT_WR)
        carrier = threading.Thread(target=delay.carry, args=(source.fileno(), nobody, 0.0))
        carrier.start()
        carrier.join(10)
        assert not carrier.is_alive()
        assert source.recv(16) == b"", "it stopped at the first"
    os.close(nobody)


def test_the_wire_delays_what_goes_through_and_keeps_its_order() -> None:
    here, source = os.pipe()[::-1]
    there, target = os.pipe()
    carrier = threading.Thread(target=delay.carry, args=(source, target, 0.1))
    carrier.start()
    begin = time.monotonic()
    os.write(here, b"first")
    time.sleep(0.02)
    os.write(here, b"second")
    assert os.read(there, 5) == b"first"
    assert time.monotonic() - begin >= 0.1
    assert os.read(there, 6) == b"second"
    assert time.monotonic() - begin >= 0.12
    os.close(here)
    carrier.join(10)
    assert not carrier.is_alive()
    for descriptor in (source, there, target):
        os.close(descriptor)
