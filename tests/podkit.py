"""Pods without a cluster: each container in namespaces of its own, as its specification says.

A root that is read-only where the specification wants that, the volumes at their places, the user, who is in no passwd,
without any capability; a process tree that ends with the container. The network is the test's own.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

ROOT = Path(__file__).parents[1]

# The arguments: where the root is to be, what is to be mounted (source:target:ro or rw; tmpfs for memory), the command.
SCRIPT = """\
set -eu
image=$PATH; PATH=/usr/sbin:/usr/bin:/sbin:/bin
root=$1; shift
mount --make-rprivate /
mount -t tmpfs -o mode=755 none "$root"
for name in bin sbin lib lib64 usr etc dev sys; do
  [ -e "/$name" ] || continue
  if [ -L "/$name" ]; then cp -a "/$name" "$root/$name"; continue; fi
  mkdir "$root/$name"; mount --rbind "/$name" "$root/$name"
done
mkdir "$root/proc"; mount -t proc none "$root/proc"
while [ "$1" != -- ]; do
  IFS=: read -r source target mode <<<"$1"
  mkdir -p "$root$target"
  if [ "$source" = tmpfs ]; then
    mount -t tmpfs -o mode=1777 none "$root$target"
  else
    mount --bind "$source" "$root$target"
    [ "$mode" = rw ] || mount -o remount,bind,ro "$root$target"
  fi
  shift
done
shift
[ -n "$WRITABLE_ROOT" ] || mount -o remount,ro "$root"
exec chroot "$root" /usr/bin/setpriv --reuid="$UID_" --regid="$GID_" --clear-groups --no-new-privs \
  --inh-caps=-all --bounding-set=-all /usr/bin/env -u UID_ -u GID_ -u WRITABLE_ROOT -u OLDPWD PATH="$image" "$@"
"""


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """What Kubernetes makes of ``$(NAME)`` and ``$$`` in arguments and variables."""

    def one(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", one, text)


def environment(container: Mapping[str, Any], secrets: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of a container, in the order in which Kubernetes sets them."""
    values: dict[str, str] = {}
    for one in container["env"]:
        if "value" in one:
            values[one["name"]] = expanded(one["value"], values)
            continue
        reference = one["valueFrom"]["secretKeyRef"]
        if reference["key"] in (secrets or {}):
            values[one["name"]] = (secrets or {})[reference["key"]]
        else:
            assert reference["optional"], f"the secret has no {reference['key']}"
    return values


class Pod:
    """A pod of a specification; what it has started ends with the block.

    Args:
        spec: as a manifest has it.
        path: for its empty directories.
        claims: the directory of each persistent volume.
        secrets: the secret, by key.
        image: directories of programs, which come before the system's.
        user: another than the specification's, as OpenShift chooses one.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        path: Path,
        *,
        claims: Mapping[str, Path],
        image: Sequence[Path],
        secrets: Mapping[str, str] | None = None,
        user: int | None = None,
    ) -> None:
        if os.geteuid():
            pytest.skip("needs root, for namespaces with mounts")
        self.spec = spec
        self.path = path
        self.image = image
        self.secrets = secrets or {}
        self.user = user or spec["securityContext"]["runAsUser"]
        self.volumes: dict[str, str] = {}
        self.running: list[subprocess.Popen[bytes]] = []
        for volume in spec["volumes"]:
            self.volumes[volume["name"]] = self._volume(volume, claims)

    def _volume(self, volume: Mapping[str, Any], claims: Mapping[str, Path]) -> str:
        if volume.get("emptyDir", {}).get("medium") == "Memory":
            return "tmpfs"
        empty = self.path / volume["name"]
        place = claims[volume["persistentVolumeClaim"]["claimName"]] if "emptyDir" not in volume else empty
        place.mkdir(parents=True, exist_ok=True)
        os.chown(place, -1, self.user)  # what fsGroup does
        place.chmod(0o2775 if "emptyDir" not in volume else 0o777)
        return str(place)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            self._signal(process, signal.SIGKILL)  # its namespace of processes goes with it
            process.kill()
            process.wait(20)

    def start(self, container: Mapping[str, Any], log: Path, command: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start a container, or another command in its place."""
        values = environment(container, self.secrets)
        words = command or [expanded(word, values) for word in container["command"]]
        mounts = [
            f"{self.volumes[mount['name']]}:{mount['mountPath']}:{'ro' if mount.get('readOnly') else 'rw'}"
            for mount in container["volumeMounts"]
        ]
        shown = {ROOT, Path(sys.base_prefix), *(folder.parent for folder in self.image)}
        mounts += [f"{place}:{place}:ro" for place in sorted(shown)]
        root = self.path / f"root.{len(self.running)}"
        root.mkdir()
        locked = container["securityContext"]["readOnlyRootFilesystem"]
        environ = values | {
            "PATH": ":".join([*map(str, self.image), "/usr/bin", "/bin"]),
            "UID_": str(self.user),
            "GID_": str(self.user),
            "WRITABLE_ROOT": "" if locked else "1",
        }
        unshare = ["/usr/bin/unshare", "--mount", "--pid", "--fork", "--kill-child", "--", "/bin/bash", "-c", SCRIPT]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*unshare, "pod", root, *mounts, "--", *words], env=environ, stdout=output, stderr=output, cwd="/"
            )
        self.running.append(process)
        return process

    def run(self, container: Mapping[str, Any], command: Sequence[str] = (), *, seconds: float = 60) -> tuple[int, str]:
        """Run a container to its end; return its status and what it printed."""
        log = self.path / f"log.{len(self.running)}"
        status = self.start(container, log, command).wait(seconds)
        return status, log.read_text()

    def stop(self, process: subprocess.Popen[bytes], *, seconds: float) -> int:
        """Ask the first process of a container to end, as the kubelet does, and return the status."""
        self._signal(process, signal.SIGTERM)
        return process.wait(seconds)

    def _signal(self, process: subprocess.Popen[bytes], number: int) -> None:
        """Send a signal to the first process of a container; that unshare's end kills it is lost with its user."""
        with contextlib.suppress(FileNotFoundError, IndexError, ProcessLookupError):
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(children[0]), number)


def image(path: Path, engine: Path) -> list[Path]:
    """The programs of an image: vllmrt of this checkout, and an engine."""
    folder = path / "image" / "bin"
    folder.mkdir(parents=True)
    (folder / "vllmrt").symlink_to(Path(sys.executable).with_name("vllmrt"))
    return [folder, engine.parent]


def wait_for(condition: Any, seconds: float = 30) -> None:
    """Wait until a condition is true; fails after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
