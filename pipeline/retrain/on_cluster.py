"""Trainings that the policy asks for, on Kubeflow: started, followed, and found again later."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.runs import Result, RunDir
from pipeline.workdir import Workdir

if TYPE_CHECKING:
    from pipeline.kubeflow.api import Server

# A run's folder ends with so much of the server's id of it (pipeline/kubeflow/record.py).
_SHORT: Final = 8
_NOT_FOUND: Final = 404


class Cluster:
    """The server of kubeflow.endpoint; it is reached when it is first needed."""

    def __init__(self, config: Config, workdir: Workdir, package: Path | None = None) -> None:
        """Checks that the runs there serve what this workdir serves.

        Args:
          config: the effective one.
          workdir: this side's: the same folder, at the same path, as the steps see it.
          package: runs this file instead of compiling one.

        Raises:
          ConfigError: kubeflow.workdir is another folder.
        """
        if Path(config.kubeflow.workdir) != workdir.root:
            raise ConfigError(
                f"--workdir is {workdir.root}, and kubeflow.workdir is {config.kubeflow.workdir}: "
                "the steps on the cluster would push to another place than the policy looks at. "
                "Mount the volume here at the same path, and name that folder as --workdir."
            )
        self._config = config
        self._workdir = workdir
        self._package = package
        self._server: Server | None = None

    def start(self, root: Path, spans: Sequence[Mapping[str, Any]]) -> str:
        """Starts a run on these spans and returns the server's id of it.

        Args:
          root: the folder of spans, on a volume that the steps see at the same path.
          spans: the window, as `Request.spans` has it.

        Raises:
          ConfigError: the spans lie on no volume of the steps, or it would not run there.
          ServerError: the server can't be reached, or refused.
        """
        from pipeline.kubeflow import submit

        submit.check_run(self._config, str(root), "", spans)
        text = submit.package_text(self._config, self._package)
        server = self._reached()
        given = submit.parameters(str(root), "", "", spans)
        title = f"{self._config.kubeflow.name} retrain {time.strftime('%Y-%m-%d %H:%M:%S')}"
        return server.start(server.upload(text), title, given, True)

    def follow(self, run_id: str) -> Result:
        """Waits for a run's end and returns what it came to."""
        from pipeline.kubeflow import submit

        server = self._reached()
        state = submit.follow(server, run_id)
        return self._written(run_id) or submit.outcome(server, state)

    def ended(self, run_id: str) -> Result | None:
        """Returns what a run came to; None while it goes on."""
        from pipeline.kubeflow import submit
        from pipeline.kubeflow.api import ServerError

        written = self._written(run_id)
        if written is not None:
            return written
        server = self._reached()
        try:
            state = server.state(run_id)
        except ServerError as error:
            if error.status != _NOT_FOUND:
                raise
            # Deleted there, or the server is a new one: it will never tell.
            return Result(run_id, "failed", [f"The server no longer has run {run_id}."])
        return submit.outcome(server, state) if state.finished else None

    def _written(self, run_id: str) -> Result | None:
        """Returns the result that the run's exit task wrote into the workdir, if it came to that.

        Of all that tells of a run it is the surest: logs go with their pods.
        """
        found = sorted(self._workdir.runs.glob(f"*-{run_id[:_SHORT]}"))
        return RunDir(found[-1]).read_result() if found else None

    def _reached(self) -> Server:
        if self._server is None:
            from pipeline.kubeflow.api import Server

            self._server = Server(self._config.kubeflow)
        return self._server
