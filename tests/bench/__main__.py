"""How fast vllmrt is, beside its rivals: ``PYTHONPATH=tests python -m bench [SCENARIO…] [--short] [--write FILE]``.

The servers run on this machine and are started here; the tools take turns. Prints Markdown; nothing is asserted, since
a machine that is busy otherwise would fail it for no fault of ours. It ends with 1 if vllmrt itself failed.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from string import Template

from bench import tools
from bench.measure import Missing
from bench.setting import Setting
from bench.table import summary

SCENARIOS = ("startup", "warm", "hub", "s3", "small_files", "disk", "memory", "netem")
MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of our own is made in it
TEMPLATE = Path(__file__).with_name("benchmarks.md.in")


def main() -> int:
    """Measure, print, write."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that every block is left
    begin, load, tables, missing, failed = time.monotonic(), os.getloadavg()[0], [], [], []
    with ExitStack() as stack:
        setting = _setting(options, stack)
        for name in options.scenarios or SCENARIOS:
            print(f"bench: {name}, after {time.monotonic() - begin:.0f} s", file=sys.stderr)
            try:
                tables += import_module(f"bench.{name}").measure(setting)
            except Missing as error:
                missing.append(f"`{name}` was not measured: {error}.\n")
            except (OSError, RuntimeError) as error:
                failed.append(f"`{name}` failed: {error}\n")
    print(*missing, *failed, sep="", end="", file=sys.stderr)
    if options.short:
        print("bench: these sizes show that it works, not how fast it is", file=sys.stderr)
    results = "\n".join([summary(tables), *missing, *(table.markdown() for table in tables)])
    print(results)
    if options.write:
        machine = _machine(setting, load, (time.monotonic() - begin) / 60)
        options.write.write_text(Template(TEMPLATE.read_text()).substitute(machine=machine, results=results))
    return int(bool(failed) or any(table.rows[0].failed for table in tables))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--short", action="store_true", help="small sizes and one run: do the benchmarks still work?")
    parser.add_argument("--runs", type=int, help="of each tool (5)")
    parser.add_argument("--megabytes", type=int, help="of the large model (2048)")
    parser.add_argument("--gigabytes", type=int, help="of the sparse model (20)")
    parser.add_argument("--scratch", type=Path, help="a directory on a disk")
    parser.add_argument("--out", type=Path, help="where to fetch to (in memory, where it has room)")
    parser.add_argument("--write", type=Path, help="write the whole page to this file")
    options = parser.parse_args()
    unknown = set(options.scenarios) - set(SCENARIOS)
    if unknown:
        parser.error(f"no scenario {', '.join(sorted(unknown))}")
    return options


def _setting(options: argparse.Namespace, stack: ExitStack) -> Setting:
    short = options.short
    size = (options.megabytes or (64 if short else 2048)) << 20
    scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="vllmrt-bench-", dir=options.scratch))
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 3 * size
    where = options.out or (MEMORY if roomy else scratch)
    out = stack.enter_context(tempfile.TemporaryDirectory(prefix="vllmrt-bench-", dir=where))
    _touch(Path(out) / "touched", 2 * size)
    return Setting(
        Path(scratch),
        Path(out) / "out",
        options.runs or (1 if short else 5),
        size,
        100 if short else 2000,
        (options.gigabytes or (1 if short else 20)) * 10**9,
        100 if short else 1000,
    )


def _touch(file: Path, size: int) -> None:
    """Write and remove: memory that a virtual machine uses for the first time is slow, whoever comes first."""
    with file.open("wb") as output:
        for _ in range(size >> 20):
            output.write(bytes(1 << 20))
    file.unlink()


def _machine(setting: Setting, load: float, minutes: float) -> str:
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = f"{cpu.partition(':')[2].strip() or platform.machine()}, {os.cpu_count()} cores for clients and servers"
    lines = [
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, medians of {setting.runs} runs; {minutes:.0f} minutes",
        f"{cores} together, {memory / 2**30:.0f} GiB of memory; load before the first run {load:.1f}",
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        *(f"{program}: {version}" for program, version in tools.versions().items()),
    ]
    return "\n".join(f"* {line}" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
