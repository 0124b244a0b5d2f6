"""The programs that take part: where they are, how they are called, which version they have."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.measure import Contender
from bench.models import BUCKET, PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BESIDE = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
SIDES = (ROOT / ".venv-bench" / "bin", BESIDE, ROOT / ".venv-bench" / "debian" / "usr" / "sbin")

NOTED = "sha256, noted only"
"""The server tells no digest: ours is computed and written into the manifest, and compared to nothing."""

_DROPPED = ("VLLM", "HF_", "R2_", "AWS_", "S3_", "RCLONE", "XDG_", "PYTHON", "SSL_", "REQUESTS_CA", "CURL_CA")
_VERSIONS = {
    "vllmrt": ["--version"],
    "aws": ["--version"],
    "s5cmd": ["version"],
    "rclone": ["version"],
    "hf": ["--version"],
    "sha256sum": ["--version"],
    "nginx": ["-v"],
}


def find(program: str) -> str | None:
    """Return where a program is: where ``scripts/bench-tools`` puts it, beside this Python, or on PATH."""
    where = [*map(str, SIDES), os.environ.get("PATH", ""), "/usr/sbin"]
    return shutil.which(program, path=os.pathsep.join(where))


def versions() -> dict[str, str]:
    """Return what each program says of itself, in one line."""
    return {program: _version(program, arguments) for program, arguments in _VERSIONS.items()}


def _version(program: str, arguments: Sequence[str]) -> str:
    found = find(program)
    if found is None:
        return "not found"
    environ = os.environ | {"HF_HUB_DISABLE_UPDATE_CHECK": "1", "NO_COLOR": "1"}
    said = subprocess.run([found, *arguments], capture_output=True, text=True, env=environ, check=False)
    lines = [line for line in (said.stdout + said.stderr).splitlines() if any(map(str.isdigit, line))]
    return lines[0].strip() if lines else "unknown"


def environ(scratch: Path, **more: str) -> dict[str, str]:
    """Return the environment of a new user with credentials, an empty home and nothing else of this machine."""
    home = scratch / "home"
    home.mkdir(exist_ok=True)
    config = home / "aws"
    config.write_text("[default]\nregion = us-east-1\ns3 =\n  addressing_style = path\n")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(_DROPPED)}
    kept = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
    return kept | {
        "HOME": str(home),
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark-secret",
        "AWS_CONFIG_FILE": str(config),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        **more,
    }


def trusting(environ: Mapping[str, str], certificate: Path) -> dict[str, str]:
    """Return an environment whose clients trust the certificate and no other."""
    return {**environ, "AWS_CA_BUNDLE": str(certificate), "SSL_CERT_FILE": str(certificate), "SSL_CERT_DIR": "/none"}


def ours(model: str, out: Path, environ: Mapping[str, str], source: str, verified: str = NOTED) -> Contender:
    """``vllmrt resolve``: digests and structure are checked, and it waits for the disk.

    Args:
        model: its name.
        out: the store that it is fetched into.
        environ: all of the environment.
        source: where from.
        verified: which digest the server tells, to which it is compared.
    """
    command = [str(BESIDE / "vllmrt"), "resolve", f"acme/{model}", "--models-dir", str(out), "--sources", source]
    return Contender("vllmrt", command, environ, verified)


def bucket(endpoint: str) -> dict[str, str]:
    """Return the variables that name the bucket to us."""
    return {"R2_BUCKET": BUCKET, "R2_MODELS_PREFIX": PREFIX, "R2_ENDPOINT_URL": endpoint}


def hf(model: str, out: Path, environ: Mapping[str, str]) -> Contender:
    """``hf download``."""
    found = find("hf")
    command = [found, "download", f"acme/{model}", "--local-dir", str(out / "hf")] if found else None
    return Contender("hf download", command, environ)


def aws(model: str, out: Path, environ: Mapping[str, str]) -> Contender:
    """``aws s3 sync``."""
    found = find("aws")
    command = [found, "s3", "sync", "--only-show-errors", "--endpoint-url", environ["R2_ENDPOINT_URL"]]
    where = [f"s3://{BUCKET}/{PREFIX}/{model}/", str(out)]
    return Contender("aws s3 sync", [*command, *where] if found else None, environ)


def s5cmd(model: str, out: Path, environ: Mapping[str, str], *options: str) -> Contender:
    """``s5cmd cp``; the options are pairs, of which only the number of workers is not one of ``cp``."""
    found = find("s5cmd")
    command = [found, "--log", "error", "--endpoint-url", environ["R2_ENDPOINT_URL"]]
    where = [f"s3://{BUCKET}/{PREFIX}/{model}/*", f"{out}/"]
    return Contender("s5cmd cp", [*command, *options[:2], "cp", *options[2:], *where] if found else None, environ)


def rclone(model: str, out: Path, environ: Mapping[str, str], *options: str) -> Contender:
    """``rclone copy``; the slash at the end spares it a HEAD, and the listing is the one of today."""
    found = find("rclone")
    command = [found, "copy", f":s3:{BUCKET}/{PREFIX}/{model}/", str(out), "--config", os.devnull, *options]
    # old ones cannot be told a certificate this way, and do not start; SSL_CERT_FILE does for all
    environ = {name: value for name, value in environ.items() if name != "AWS_CA_BUNDLE"}
    s3 = ["--s3-provider", "Other", "--s3-env-auth", "--s3-force-path-style", "--s3-list-version", "2"]
    where = ["--s3-endpoint", environ["R2_ENDPOINT_URL"]]
    return Contender("rclone copy", [*command, *s3, *where] if found else None, environ)


def then_summed(contender: Contender, out: Path, sums: Path) -> Contender:
    """Return a contender that runs ``sha256sum -c`` afterwards, over `sums`."""
    name = f"{contender.name} + sha256sum -c"
    if contender.command is None or not find("sha256sum"):
        return contender._replace(name=name, command=None)
    line = 'sums=$1 out=$2; shift 2; "$@" && cd "$out" && exec sha256sum --quiet -c "$sums"'
    command = ["sh", "-c", line, "sh", str(sums), str(out), *contender.command]
    return contender._replace(name=name, command=command, verified="sha256")


def sums(model: Path, file: Path) -> Path:
    """Write the list of a model's digests, and return its file."""
    names = sorted(path.name for path in model.iterdir())
    with file.open("wb") as output:
        subprocess.run(["sha256sum", "--", *names], cwd=model, stdout=output, check=True)
    return file
