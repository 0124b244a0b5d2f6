"""Print docs/reference/cli.md, made from the help of the command line."""

from __future__ import annotations

import html
import subprocess
import sys

HEAD = """\
# Command line

Made from `vllmrt --help` and the help of every command by `make cli-page`; do not edit. The variable behind an option
does the same ([settings](settings.md)); what a command ends with is listed under [exit codes](exit-codes.md).
"""


def main() -> None:
    """Print the page."""
    command = [sys.executable, "-m", "typer", "vllmrt.cli.app", "utils", "docs", "--name", "vllmrt", "--title", "_"]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    page = html.unescape(made.partition("\n")[2])
    print(HEAD + page.replace("```console\n$ ", "```text\n").rstrip())


if __name__ == "__main__":
    main()
