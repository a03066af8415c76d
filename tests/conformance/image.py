"""Runs steps inside the image that `make image` built, as a container runtime would.

The image's root folder is mounted by buildah and entered by chroot, in a mount namespace of its
own: read-only but for /tmp and the mounted volumes, as the user that the image names, without
capabilities, with the image's own environment and nothing of this machine's. What a kernel
namespace would add (processes, network, a cgroup's limits) is not there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.conformance.launcher import Ended, Json, Launcher

# What `scripts/image.sh cpu` makes; another one is named by SAFELIGHT_IMAGE.
_DEFAULT = "localhost/safelight:cpu"
_LOG_CHARACTERS = 20_000
# Of the launcher's folders in a pod; the bucket's own is that of Kubeflow's default store.
_POD_FOLDERS = ("tmp", "minio")

_ENTER = """
root=$1; volume=$2; pod=$3; user=$4; directory=$5; shift 5
mount --bind "$root" "$root" && mount -o remount,bind,ro "$root" || exit 125
mount --bind "$volume" "$root/safelight" || exit 125
mount --bind "$pod/minio" "$root/minio" || exit 125
mount --bind "$pod/tmp" "$root/tmp" || exit 125
mount -t proc proc "$root/proc" || mount --rbind /proc "$root/proc" || exit 125
mount --rbind /dev "$root/dev" || exit 125
exec setpriv --no-new-privs \
    chroot --userspec="$user" --groups= "$root" \
    /bin/sh -c 'cd "$1" && shift && exec /usr/bin/env -i "$@"' sh "$directory" "$@"
"""


@dataclass(frozen=True)
class Image:
    """A built image: where its root folder is mounted, and what it says of its containers."""

    root: Path
    user: str
    directory: str
    environment: Mapping[str, str]
    entrypoint: tuple[str, ...]
    container: str

    @property
    def uid(self) -> int:
        return int(self.user.partition(":")[0])

    def enter(
        self,
        volume: Path,
        pod: Path,
        line: list[str],
        environment: Mapping[str, str],
        seconds: int,
    ) -> Ended:
        """Runs a command line in the image.

        Args:
          volume: is /safelight there; it must be the image's user's.
          pod: its folders `tmp` and `minio` are /tmp and /minio there.
          line: the command.
          environment: beside the image's own.
          seconds: after which it is ended.
        """
        for name in _POD_FOLDERS:
            (pod / name).mkdir(parents=True, exist_ok=True)
        _give(pod, self.uid)
        told = [f"{key}={one}" for key, one in {**self.environment, **environment}.items()]
        with open(pod / "log.txt", "w+b") as log:
            done = subprocess.run(
                ["unshare", "--mount", "sh", "-c", _ENTER, "sh", str(self.root), str(volume),
                 str(pod), self.user, self.directory, *told, *line],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=seconds,
            )  # fmt: skip
            log.seek(0)
            return Ended(done.returncode, log.read().decode(errors="replace")[-_LOG_CHARACTERS:])

    def release(self) -> None:
        """Unmounts the root folder; the image stays."""
        _buildah("rm", self.container)


@cache
def missing() -> str:
    """Returns what keeps the steps from being run inside the image, "" for nothing."""
    if os.geteuid() != 0:
        return "entering an image by chroot takes root"
    for tool in ("buildah", "unshare", "setpriv", "chroot"):
        if shutil.which(tool) is None:
            return f"{tool} is missing"
    found = subprocess.run(["buildah", "inspect", "--type", "image", name()], capture_output=True)
    if found.returncode != 0:
        return f"there is no image {name()}: make image"
    return ""


def name() -> str:
    """Returns the name of the image that is tried."""
    return os.environ.get("SAFELIGHT_IMAGE", _DEFAULT)


def mount() -> Image:
    """Mounts the image; the caller releases it."""
    described = json.loads(_buildah("inspect", "--type", "image", name()))["OCIv1"]["config"]
    container = _buildah("from", "--pull-never", name()).strip()
    root = Path(_buildah("mount", container).strip())
    # Where a runtime would make mount points.
    for place in ("safelight", "minio", "proc", "dev", "tmp"):
        (root / place).mkdir(exist_ok=True)
    return Image(
        root=root,
        user=described["User"],
        directory=described.get("WorkingDir") or "/",
        environment=dict(one.split("=", 1) for one in described["Env"]),
        entrypoint=tuple(described["Entrypoint"]),
        container=container,
    )


class ImageLauncher(Launcher):
    """Runs a container's exact command inside the image."""

    def __init__(
        self, image: Image, volume: Path, pod: Path, bucket: Path, labels: Mapping[str, str]
    ) -> None:
        """Args:
        image: mounted.
        volume: is mounted at /safelight.
        pod: an empty folder: what the pod has to itself.
        bucket: the artifact store.
        labels: of the pod.
        """
        super().__init__(pod, bucket, labels)
        self._image = image
        self._volume = volume

    def run(
        self, line: list[str], environment: Mapping[str, str], platform: Json, seconds: int
    ) -> Ended:
        mounted = [one["mountPath"] for one in platform.get("pvcMount", [])]
        assert mounted == ["/safelight"], mounted
        return self._image.enter(self._volume, self.pod, line, environment, seconds)

    def path_in_container(self, path: Path) -> str:
        return f"/{path.relative_to(self.pod)}"

    def custom_path(self, path: Path) -> Json:
        # The real paths are there: /minio/…, as the launcher names them.
        return {}


def give(folder: Path, image: Image) -> Path:
    """Makes a folder the image's user's, as an administrator does with a volume."""
    _give(folder, image.uid)
    return folder


def _give(folder: Path, uid: int) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, uid, follow_symlinks=False)


def _buildah(*arguments: str) -> Any:
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
