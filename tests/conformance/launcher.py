"""Runs one container as Kubeflow Pipelines' launcher does, at 2.17.0.

Followed: backend/src/v2/component/launcher_v2.go (`executeV2`, `downloadArtifacts`,
`compileCmdAndArgs`, `uploadOutputArtifacts`, `mergeRuntimeArtifacts`, `collectOutputParameters`,
`LocalPathForURI`) and backend/src/v2/driver/k8s.go for what the platform document asks of a pod.

Natively, a pod's /minio is a folder of its own, which the launcher's `customPath` names; inside an
image, the paths are the real ones.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = dict[str, Any]

_LOCAL = {"gs://": "gcs", "s3://": "s3", "minio://": "minio"}
_LABEL = re.compile(r"metadata\.labels\['([^']+)'\]")
_LOG_CHARACTERS = 20_000


@dataclass(frozen=True)
class Slots:
    """What the driver gives the launcher: resolved inputs, and where outputs go."""

    parameters: Json
    inputs: Mapping[str, Json]
    outputs: Mapping[str, Json]
    output_parameters: tuple[str, ...]


@dataclass(frozen=True)
class Ended:
    """How a container ended; `exit_code` is its own: the launcher itself ends with 1 for each."""

    exit_code: int
    log: str
    artifacts: Mapping[str, Json] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


class Launcher:
    """Runs a container's exact command in this environment."""

    def __init__(self, pod: Path, bucket: Path, labels: Mapping[str, str]) -> None:
        """Args:
        pod: an empty folder: what the pod has to itself.
        bucket: the artifact store.
        labels: of the pod.
        """
        self.pod = pod
        self.bucket = bucket
        self.labels = labels

    def execute(self, container: Json, platform: Json, slots: Slots, attempt: int) -> Ended:
        """Downloads inputs, runs the command, and uploads outputs if it ended with 0."""
        for one in slots.inputs.values():
            self._download(one["uri"])
        given = self._executor_input(slots)
        for one in slots.outputs.values():
            self._place(one["uri"]).parent.mkdir(parents=True, exist_ok=True)
        for key in slots.output_parameters:
            self._parameter_file(key).parent.mkdir(parents=True, exist_ok=True)
        line = [self._fill(part, given) for part in (*container["command"], *container["args"])]
        seconds = int(platform["activeDeadlineSeconds"])
        ended = self.run(line, self._environment(platform, attempt), platform, seconds)
        if ended.exit_code != 0:
            return ended
        return Ended(0, ended.log, self._collect(slots), self._collect_parameters(slots))

    def run(
        self, line: list[str], environment: Mapping[str, str], platform: Json, seconds: int
    ) -> Ended:
        """Runs the command line; natively, with this environment's Python and packages."""
        with open(self.pod / "log.txt", "w+b") as log:
            done = subprocess.run(
                line,
                cwd=self.pod,
                env={**native_environment(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=seconds,
            )
            log.seek(0)
            return Ended(done.returncode, log.read().decode(errors="replace")[-_LOG_CHARACTERS:])

    def path_in_container(self, path: Path) -> str:
        """Returns how the container names a path in the pod's folder."""
        return str(path)

    def custom_path(self, path: Path) -> Json:
        """Returns what the runtime artifact says of its path, where it isn't the usual one."""
        return {"customPath": str(path)}

    def _place(self, uri: str) -> Path:
        for scheme, root in _LOCAL.items():
            if uri.startswith(scheme):
                return self.pod / root / uri.removeprefix(scheme)
        raise ValueError(f"failed to generate local path for URI {uri}")

    def _download(self, uri: str) -> None:
        source, target = self._remote(uri), self._place(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            # A bucket knows no empty folders, and no times but its own.
            shutil.copytree(source, target, copy_function=shutil.copyfile, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copyfile(source, target)

    def _remote(self, uri: str) -> Path:
        return self.bucket / uri.replace("://", "/", 1)

    def _executor_input(self, slots: Slots) -> Json:
        def listed(artifacts: Mapping[str, Json]) -> Json:
            return {
                key: {"artifacts": [{**one, **self.custom_path(self._place(one["uri"]))}]}
                for key, one in artifacts.items()
            }

        return {
            "inputs": {"parameterValues": slots.parameters, "artifacts": listed(slots.inputs)},
            "outputs": {
                "artifacts": listed(slots.outputs),
                "parameters": {
                    key: {"outputFile": self.path_in_container(self._parameter_file(key))}
                    for key in slots.output_parameters
                },
                "outputFile": self.path_in_container(self._output_file),
            },
        }

    @property
    def _output_file(self) -> Path:
        return self.pod / "tmp" / "kfp_outputs" / "output_metadata.json"

    def _parameter_file(self, key: str) -> Path:
        return self.pod / "tmp" / "kfp" / "outputs" / key

    def _fill(self, part: str, given: Json) -> str:
        return part.replace("{{$}}", json.dumps(given))

    def _environment(self, platform: Json, attempt: int) -> dict[str, str]:
        found = {"KFP_POD_NAME": self.pod.name, "KFP_RETRY_INDEX": str(attempt)}
        for one in platform.get("fieldPathAsEnv", []):
            match = _LABEL.fullmatch(one["fieldPath"])
            if match is None:
                raise ValueError(f"field path {one['fieldPath']}")
            found[one["name"]] = self.labels[match[1]]
        return found

    def _collect(self, slots: Slots) -> dict[str, Json]:
        """Merges what the container says of its outputs, and uploads them."""
        said: Json = {}
        if self._output_file.is_file():
            said = json.loads(self._output_file.read_text()).get("artifacts", {})
        collected = {}
        for key, slot in slots.outputs.items():
            told = (said.get(key, {}).get("artifacts") or [{}])[0]
            artifact = {
                **slot,
                "uri": told.get("uri") or slot["uri"],
                "metadata": {**slot["metadata"], **told.get("metadata", {})},
            }
            self._upload(artifact["uri"])
            collected[key] = artifact
        return collected

    def _upload(self, uri: str) -> None:
        source, target = self._place(uri), self._remote(uri)
        if not source.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            for path in source.rglob("*"):
                if path.is_file():
                    place = target / path.relative_to(source)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, place)
        else:
            shutil.copyfile(source, target)

    def _collect_parameters(self, slots: Slots) -> Json:
        missing = [
            key for key in slots.output_parameters if not self._parameter_file(key).is_file()
        ]
        if missing:
            raise FileNotFoundError(f"failed to read output parameters {missing}")
        return {key: self._parameter_file(key).read_text() for key in slots.output_parameters}


def native_environment() -> dict[str, str]:
    """Returns an environment in which `python` is this one, without this shell's own settings."""
    kept = ("HOME", "LANG", "TMPDIR", "TF_CPP_MIN_LOG_LEVEL", "PYTHONPATH")
    environment = {key: os.environ[key] for key in kept if key in os.environ}
    environment["PATH"] = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    environment["CUDA_VISIBLE_DEVICES"] = "-1"
    return environment
