"""What every manifest says of the settings: which variables, which secrets, which arguments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vllmrt import layers
from vllmrt.errors import ConfigError
from vllmrt.identity import DEFAULT_MODEL, requested
from vllmrt.masking import Masker
from vllmrt.serve.argv import passed_on
from vllmrt.types import ModelRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllmrt.layers import Row
    from vllmrt.settings import Settings

# They say which model, or how this one run goes, and not how the server is to run.
_OF_THE_RUN = frozenset(
    {
        "model",
        "model_org",
        "model_id",
        "model_revision",
        "model_env_file",
        "dry_run",
        "preflight_json",
        "settings_file",
    }
)
# What libraries of a source read by themselves, or what may be set outside the settings.
_OF_SOURCES = {
    "r2": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "hf-hub": ("HF_TOKEN",),
}
_TLS = ("--ssl-certfile", "--ssl-keyfile", "--uds")
_DEVICES = frozenset({"cuda_visible_devices", "gpu_devices"})
# A container has a place of its own for the store, and Flox sets its variables itself.
_ELSEWHERE = frozenset({"VLLM_MODELS_DIR", "FLOX_ENV", "FLOX_ENV_PROJECT", "FLOX_ENV_CACHE"})


class Deployment(NamedTuple):
    """A server that is to be started unattended.

    Attributes:
        settings: the snapshot.
        request: which model.
        variables: by name; only what differs from the defaults.
        secrets: names of the variables that are set, but may not be shown.
        credentials: names of the variables with which its sources get in, if they are set.
        extra: arguments for ``vllm serve``.
        warnings: about arguments that are left out.
    """

    settings: Settings
    request: ModelRequest
    variables: dict[str, str]
    secrets: tuple[str, ...]
    credentials: tuple[str, ...]
    extra: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def model(self) -> dict[str, str]:
        """The variables that name the model, as in the reference; each can be replaced on its own."""
        org, _, name = self.request.model_id.partition("/")
        named = {"VLLM_MODEL_ORG": org, "VLLM_MODEL": name}
        if self.settings.model not in {None, name}:
            named = {"VLLM_MODEL_ID": self.request.model_id, "VLLM_MODEL": str(self.settings.model)}
        return named | ({"VLLM_MODEL_REVISION": self.request.revision} if self.request.revision else {})

    def without(self, *fields: str) -> dict[str, str]:
        """Return the variables but for those of some settings."""
        left_out = {variable(row) for row in layers.rows() if row.field in fields}
        return {name: value for name, value in self.variables.items() if name not in left_out}

    @property
    def of_this_machine(self) -> tuple[str, ...]:
        """Names of the variables that mean nothing in a container: paths, and which GPUs."""
        strange = (row for row in layers.rows() if row.kind is Path or row.field in _DEVICES)
        return tuple(name for name in map(variable, strange) if name in self.variables and name not in _ELSEWHERE)

    def elsewhere(self, *fields: str) -> dict[str, str]:
        """Return the variables for a container, but for those of some settings."""
        left_out = {*_ELSEWHERE, *self.of_this_machine}
        return {name: value for name, value in self.without(*fields).items() if name not in left_out}

    def command(self, *more: str) -> list[str]:
        """Return the arguments of vllmrt that start the server.

        Args:
            more: further arguments for ``vllm serve``.
        """
        extra = [*self.extra, *more]
        return ["up", "--", *extra] if extra else ["up"]


def describe(settings: Settings, extra: Sequence[str], environ: Mapping[str, str]) -> Deployment:
    """Take the settings apart.

    Args:
        settings: the snapshot.
        extra: arguments for ``vllm serve``.
        environ: what else is secret here, and may stand in no manifest.

    Raises:
        ConfigError: a value that cannot be written as a variable, a name that is none, an argument that is secret.
        ServeRefused: an extra argument that cannot be passed on.
    """
    masker = Masker(environ, settings)
    kept, warnings = passed_on(extra, strict=settings.strict_flags)
    _check(extra, masker)
    variables: dict[str, str] = {}
    secrets: list[str] = []
    for row in layers.rows():
        value = getattr(settings, row.field)
        if row.field in _OF_THE_RUN or value is None or value == row.default:
            continue
        text = _text(row, value)
        if row.var.secret or masker.text(text) != text:
            secrets.append(variable(row))
        else:
            variables[variable(row)] = text
    request = requested(settings) or ModelRequest(DEFAULT_MODEL)
    credentials = tuple(name for name in offered(settings) if environ.get(name))
    return Deployment(
        settings, request, variables, tuple(secrets), credentials, tuple(kept), (*warnings, *_of_tls(kept))
    )


def offered(settings: Settings) -> list[str]:
    """Return the variables with which the sources that are asked may get in."""
    asked = set(settings.model_sources) - (set() if settings.r2_bucket else {"r2"})
    return [name for source, names in _OF_SOURCES.items() if source in asked for name in names]


def variable(row: Row) -> str:
    """Return the name under which a manifest sets a row: the reference's, where it has one."""
    return row.var.old or row.names[0]


def _text(row: Row, value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if not isinstance(value, tuple):
        return str(value)
    if any("," in item or item != item.strip() for item in value):
        raise ConfigError(
            f"{row.field} cannot be written as a variable: a name in it has a comma, or a space at its end",
            hint="change it, or leave it to a settings file beside the server",
        )
    return ",".join(value)


def _of_tls(extra: Sequence[str]) -> list[str]:
    """Whoever waits for the server asks over plain HTTP."""
    asked = {word.partition("=")[0].replace("_", "-") for word in extra}
    return [
        f"{flag}: what waits for the server to be ready asks it over plain HTTP; change that by hand"
        for flag in _TLS
        if flag in asked
    ]


def _check(extra: Sequence[str], masker: Masker) -> None:
    for number, (word, shown) in enumerate(zip(extra, masker.argv(extra), strict=True), 1):
        if not word.replace("\n", "").replace("\t", "").isprintable():
            raise ConfigError(f"extra argument {word[:80]!a} cannot be printed", hint="leave it out")
        if word.replace("_", "-").startswith("--hf-t") or shown != word:
            raise ConfigError(
                f"extra argument {number} is a secret, or has one in it",
                hint="a token is VLLMRT_HF_TOKEN; what is secret never stands in a manifest",
            )
