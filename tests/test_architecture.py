"""DESIGN.md §1 and §2, held against the source, and what a run imports."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import vllmrt
from vllmrt.testing import fake_dist, make_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[..., set[str]]

PACKAGE = Path(vllmrt.__file__).parent
VLLMRT = str(Path(sys.executable).with_name("vllmrt"))

# Every part may import from the parts on lower lines, and from those on its own line where the line is shared ground.
LINES = [
    {"types", "errors"},
    {
        "identity",
        "paths",
        "settings",
        "discovery",
        "layers",
        "masking",
        "hubcache",
        "locking",
        "events",
        "procfs",
        "boundary",
    },
    {"hookspecs", "host"},
    {"preflight", "gpu", "transfer", "validate", "resolve", "serve", "builtin"},
    {"pipeline", "plugincheck", "scaffold", "doctor", "background", "render", "monitoring"},
    {"cli", "__main__"},
    {"testing"},
]
STAGES = 3
AMONG_STAGES = {
    ("resolve", "transfer"),
    ("resolve", "validate"),
    ("preflight", "gpu"),
    ("builtin", "validate"),
    ("builtin", "preflight"),
}


class Import(NamedTuple):
    """An import of `module` in `file`; `name` is what ``from`` takes out of it."""

    file: Path
    line: int
    module: str
    name: str | None
    at_top: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(PACKAGE)}:{self.line}: {self.module}"


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


FILES = sorted(file for file in PACKAGE.rglob("*.py") if "__pycache__" not in file.parts)
TREES = {file: parse(file) for file in FILES}


def dotted(file: Path) -> str:
    parts = ("vllmrt", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(file) for file in FILES}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def walk(node: ast.AST, *, at_top: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Yield what runs, and whether it runs on import."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        inside = at_top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield child, inside
        yield from walk(child, at_top=inside)


def imports(file: Path) -> Iterator[Import]:
    for node, at_top in walk(TREES[file]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, None, at_top)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            for alias in node.names:
                module = node.module or ""
                whole = f"{module}.{alias.name}"
                yield Import(file, node.lineno, *((whole, None) if whole in MODULES else (module, alias.name)), at_top)


IMPORTS = [found for file in FILES for found in imports(file)]


def part(module: str) -> str:
    """Return the second word of a dotted name: the part of the package."""
    return [*module.split("."), ""][1]


def line_of(name: str) -> int:
    found = [number for number, line in enumerate(LINES) if name in line]
    assert found, f"{name} has no place in the table"
    return found[0]


def root(found: Import) -> str:
    return found.module.partition(".")[0]


def test_every_part_has_a_place() -> None:
    for module in MODULES - {"vllmrt"}:
        line_of(part(module))


def offences(found: Import) -> bool:
    own, other = part(dotted(found.file)), part(found.module)
    if root(found) != "vllmrt" or not other or own == other or not own:
        return False
    if line_of(own) == line_of(other) == STAGES:
        return (own, other) not in AMONG_STAGES
    return line_of(own) < line_of(other) or other == "testing"


def test_dependencies_point_one_way() -> None:
    assert [str(found) for found in IMPORTS if offences(found)] == []


def test_the_package_itself_imports_nothing_at_the_top() -> None:
    init = PACKAGE / "__init__.py"
    assert {found.module for found in imports(init) if found.at_top} <= {"__future__", "typing"}


def test_the_values_are_made_of_the_standard_library() -> None:
    for name in ("types.py", "errors.py"):
        for found in imports(PACKAGE / name):
            assert root(found) in {*sys.stdlib_module_names, "__future__"}, str(found)


def test_no_import_at_the_top_goes_round_in_a_circle() -> None:
    edges: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in IMPORTS:
        if found.at_top and found.module in MODULES:
            edges[dotted(found.file)].add(found.module)
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above, module])
        if module not in done:
            for other in sorted(edges[module]):
                visit(other, (*above, module))
            done.add(module)

    for module in sorted(MODULES):
        visit(module, ())


@pytest.mark.parametrize(
    ("library", "users"),
    [
        ("pluggy", {"host", "hookspecs"}),
        ("typer", {"cli"}),
        ("click", {"cli"}),
        ("rich", {"cli", "events"}),
        ("platformdirs", {"paths"}),
        ("psutil", set()),
        ("pytest", {"testing"}),
    ],
)
def test_a_library_has_its_place(library: str, users: set[str]) -> None:
    assert [str(one) for one in IMPORTS if root(one) == library and part(dotted(one.file)) not in users] == []


LATE = [
    "boto3",
    "botocore",
    "fsspec",
    "huggingface_hub",
    "importlib.metadata",
    "numpy",
    "pluggy",
    "pynvml",
    "rich",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "vllm",
    "yaml",
    "pydantic",
    "requests",
    "httpx",
    "asyncio",
]


def test_what_is_dear_is_imported_where_it_is_used() -> None:
    early = [found for found in IMPORTS if found.at_top and found.file.name != "hookspecs.py"]
    assert [str(one) for one in early for dear in LATE if f"{one.module}.".startswith(f"{dear}.")] == []


def test_the_engine_and_the_sdks_are_never_imported() -> None:
    never = {"vllm", "torch", "transformers", "boto3", "botocore", "huggingface_hub", "fsspec", "pynvml"}
    assert [str(found) for found in IMPORTS if root(found) in never] == []


def test_nobody_takes_what_is_private_to_another_module() -> None:
    private = [found for found in IMPORTS if root(found) == "vllmrt" and (found.name or "").startswith("_")]
    assert [str(found) for found in private if not found.name.startswith("__")] == []  # type: ignore[union-attr]


def test_only_the_command_line_reads_the_environment() -> None:
    names = {"environ", "environb", "getenv", "getenvb", "putenv"}
    for file, tree in TREES.items():
        # proxies and certificates of an HTTP client, and the dynamic loader, are the environment's own business
        if {part(dotted(file)), dotted(file)} & {"cli", "testing", "vllmrt.transfer.connection", "vllmrt.gpu.driver"}:
            continue
        for node, _ in walk(tree):
            used = isinstance(node, ast.Attribute) and node.attr in names and ast.unparse(node.value) == "os"
            taken = (
                isinstance(node, ast.ImportFrom) and node.module == "os" and names & {one.name for one in node.names}
            )
            assert not used, f"{file}:{node.lineno}"  # type: ignore[attr-defined]
            assert not taken, f"{file}:{node.lineno}"  # type: ignore[attr-defined]


def test_only_the_command_line_prints_or_exits() -> None:
    for file, tree in TREES.items():
        if part(dotted(file)) == "cli":
            continue
        for node, _ in walk(tree):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"print", "exit", "quit", "sys.exit"}, f"{file}:{node.lineno}"


def test_no_shell() -> None:
    for file, tree in TREES.items():
        for node, _ in walk(tree):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"os.system", "os.popen", "eval", "exec"}, f"{file}:{node.lineno}"
                shell = [word for word in node.keywords if word.arg == "shell"]
                assert not shell, f"{file}:{node.lineno}"


# settings.py is one table, a row for each variable; types.py is the contract, and half of it is documentation
LONG = {"vllmrt.settings", "vllmrt.types"}


@pytest.mark.parametrize("file", FILES, ids=dotted)
def test_a_module_is_short(file: Path) -> None:
    assert dotted(file) in LONG or len(file.read_text().splitlines()) <= 300


@pytest.mark.parametrize("file", FILES, ids=dotted)
def test_whatever_is_public_says_what_it_is(file: Path) -> None:
    assert ast.get_docstring(TREES[file])
    for node in public(TREES[file]):
        assert ast.get_docstring(node), f"{file}:{node.lineno}: {node.name}"
        for method in public(node) if isinstance(node, ast.ClassDef) else ():
            assert ast.get_docstring(method), f"{file}:{method.lineno}: {node.name}.{method.name}"


def public(node: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    return (
        one for one in node.body if isinstance(one, ast.FunctionDef | ast.ClassDef) and not one.name.startswith("_")
    )


# what a run imports

SDKS = [
    "boto3",
    "botocore",
    "fsspec",
    "huggingface_hub",
    "pynvml",
    "torch",
    "transformers",
    "numpy",
    "pydantic",
    "requests",
    "vllm",
    "psutil",
]
ENGINE = """\
#!/bin/sh
test "$2" = --help=all && echo "  --config A" && echo "  --port A" && echo "  --gpu-memory-utilization A" \\
    && echo "  --uvicorn-log-level A"
exit 0
"""
# -X importtime does not see what importlib.import_module imports
SPY = """\
import os, sys
_log = os.open(os.environ["IMPORTED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
class _Spy:
    def find_spec(name, path=None, target=None):
        os.write(_log, name.encode() + b"\\n")
sys.meta_path.insert(0, _Spy)
"""


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """A home with a model and an engine, and a Python that notes what it looks for."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SPY)
    engine = tmp_path / "vllm"
    engine.write_text(ENGINE)
    engine.chmod(0o755)
    make_model(tmp_path / "models" / "name")
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "TMPDIR"}}
    return kept | {
        "HOME": str(tmp_path / "home"),
        "IMPORTED": str(tmp_path / "imported"),
        "PYTHONPATH": str(site),
        "VLLM_MODELS_DIR": str(tmp_path / "models"),
        "VLLM_MODEL_SOURCES": "local",
        "VLLM_PORT": "20799",
        "VLLM_PREFLIGHT_LOCKFILE": str(tmp_path / "lock"),
        "VLLMRT_VLLM": str(engine),
    }


def run_spied(command: list[str], environ: dict[str, str], code: int) -> set[str]:
    log = Path(environ["IMPORTED"])
    log.write_text("")
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr[-2000:]
    return set(log.read_text().split())


@pytest.fixture
def run(machine: dict[str, str]) -> Run:
    def call(*args: str, code: int = 0) -> set[str]:
        """Run the command line and return the modules that it imported, or looked for."""
        return run_spied([VLLMRT, *args], machine, code)

    return call


def heavy(imported: set[str], *more: str) -> set[str]:
    return {name for name in imported for dear in [*SDKS, *more] if f"{name}.".startswith(f"{dear}.")}


def test_an_import_is_seen_at_all(machine: dict[str, str]) -> None:
    script = "import importlib, rich.text; importlib.import_module('yaml'); import torch.nothing_of_this_name"
    seen = run_spied([sys.executable, "-c", script], machine, code=1)
    assert heavy(seen, "rich", "yaml") >= {"torch", "rich", "rich.text", "yaml"}


COMMANDS = [
    ("--version",),
    ("--help",),
    ("up", "--help"),
    ("preflight", "--port", "1", "--dry-run"),
    ("plugins",),
    ("config", "show"),
    ("resolve", "org/name", "--dry-run"),
    ("render", "quadlet", "org/name"),
]


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_no_command_imports_an_sdk(args: tuple[str, ...], run: Run) -> None:
    assert heavy(run(*args), "yaml") == set()


def test_a_warm_start_imports_what_it_uses_and_nothing_else(run: Run) -> None:
    run("up", "org/name", "--dry-run")
    run("resolve", "org/name")
    run("up", "org/name")
    imported = run("up", "org/name", "--dry-run")
    extra = [
        "rich",
        "yaml",
        "importlib.metadata",
        "email",
        "http",
        "asyncio",
        "zipfile",
        "vllmrt.transfer",
        "vllmrt.serve.smoke",
    ]
    assert heavy(imported, *extra) == set()
    assert "vllmrt_source_local" in imported
    assert {name for name in imported if name.startswith("vllmrt_")} == {"vllmrt_source_local"}


def test_the_old_names_do_without_typer(machine: dict[str, str]) -> None:
    cache = Path(machine["HOME"])
    cache.mkdir()
    names = ("TENSOR_PARALLEL_SIZE", "PIPELINE_PARALLEL_SIZE", "MAX_MODEL_LEN", "MAX_NUM_BATCHED_TOKENS")
    environ = machine | dict.fromkeys((f"VLLM_{name}" for name in names), "1")
    environ |= {"VLLM_KV_CACHE_DTYPE": "auto", "VLLM_SERVED_MODEL_NAME": "x", "VLLM_HOST": "127.0.0.1"}
    environ |= {"VLLM_MODEL": "name", "VLLM_MODEL_ORG": "org", "FLOX_ENV_CACHE": str(cache)}
    for script, *args in (["preflight"], ["resolve"], ["serve", "--dry-run"], ["serve"]):
        program = f"from vllmrt.cli.compat import {script}; {script}.main()"
        imported = run_spied([sys.executable, "-c", program, *args], environ, 0)
        assert heavy(imported, "typer", "click", "rich", "yaml", "importlib.metadata", "asyncio") == set()


MARK = "from pathlib import Path\nPath(__file__).with_suffix('.imported').touch()\n"


@pytest.mark.parametrize("args", [("plugins",), ("plugins", "--json"), ("plugins", "info", "acme")], ids=" ".join)
def test_listing_the_plugins_imports_none(args: tuple[str, ...], run: Run, machine: dict[str, str]) -> None:
    site = Path(machine["PYTHONPATH"])
    groups = {f"vllmrt.{group}": {"acme": "acme_marked"} for group in ("sources", "gpu_probes", "plugins", "models")}
    fake_dist(site, "acme", "1.0", groups, {"acme_marked": MARK})
    imported = run(*args)
    assert not (site / "acme_marked.imported").exists()
    assert not {name for name in imported if name.startswith(("vllmrt_", "acme"))}
    assert "pluggy" not in imported


def test_a_source_that_is_not_named_is_not_imported(run: Run, machine: dict[str, str]) -> None:
    site = Path(machine["PYTHONPATH"])
    fake_dist(site, "acme", "1.0", {"vllmrt.sources": {"acme": "acme_marked"}}, {"acme_marked": MARK})
    run("resolve", "org/name")
    assert not (site / "acme_marked.imported").exists()
    run("resolve", "org/name", "--sources", "acme", code=10)
    assert (site / "acme_marked.imported").exists()
