"""Print docs/reference/settings.md, made from the settings table."""

from __future__ import annotations

from itertools import groupby

from vllmrt.layers import Row, rows

HEAD = """\
# Settings

Made from the table in `src/vllmrt/settings.py` by `make settings-page`; do not edit.

A flag wins over its `VLLMRT_` variable, that over the old name, that over the settings file, that over the default. An
empty variable counts as unset, except `CUDA_VISIBLE_DEVICES`. The settings file is TOML with the names of the first
column as keys; it is `settings.toml` in the user's configuration directory (`~/.config/vllmrt`), or what
`VLLMRT_SETTINGS_FILE` names, and never one from the current directory. `vllmrt config show` prints every value and
where it came from.

All values that cannot be used are reported at once, with exit code 1 (`vllm-serve`: 2). The three old names look at
their own settings only, and have two defaults of their own: `VLLM_HOST` is `0.0.0.0`, and `VLLM_MODEL_SOURCES` begins
with `flox`.
"""


def main() -> None:
    """Print the page."""
    print(HEAD)
    for section, group in groupby(rows(), key=lambda row: row.var.section):
        print(f"## {section.capitalize()}\n")
        print("| setting | variables | flag | value | default | meaning |")
        print("|---|---|---|---|---|---|")
        for row in group:
            print(_line(row))
        print()


def _line(row: Row) -> str:
    variables = ", ".join(f"`{name}`" for name in row.names)
    flag = f"`{row.var.flag}`" if row.var.flag else ""
    secret = " A secret: never shown." if row.var.secret else ""
    return f"| `{row.field}` | {variables} | {flag} | {row.bounds} | {_default(row)} | {row.var.help}.{secret} |"


def _default(row: Row) -> str:
    if row.default is None or row.default == ():
        return "unset"
    if isinstance(row.default, bool):
        return f"`{str(row.default).lower()}`" if not row.var.strict else f"`{int(row.default)}`"
    return f"`{','.join(row.default) if isinstance(row.default, tuple) else row.default}`"


if __name__ == "__main__":
    main()
