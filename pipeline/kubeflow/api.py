"""A Kubeflow Pipelines server, through kfp's own client: uploads, runs, schedules, logs."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import requests

from pipeline.config import Kubeflow
from pipeline.errors import ConfigError, SafelightError
from pipeline.kubeflow import names

FINISHED: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
_PAGE: Final = 100
_KNOCK_SECONDS: Final = 15


class ServerError(SafelightError):
    """The Kubeflow Pipelines server can't be reached, or refused with an HTTP `status`."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Task:
    """One task of a run as the server tells it; `children` are ids or pods below it."""

    id: str
    name: str
    state: str
    pod: str
    children: tuple[str, ...]


@dataclass(frozen=True)
class RunState:
    """A run as the server tells it."""

    id: str
    state: str
    error: str
    tasks: tuple[Task, ...]

    @property
    def finished(self) -> bool:
        return self.state in FINISHED


class Server:
    """One server and namespace; `options` say which, and how to be let in."""

    def __init__(self, options: Kubeflow) -> None:
        """Connects.

        Raises:
          ConfigError: no endpoint, or a variable that should hold a secret is not set.
          ServerError: it can't be reached.
        """
        if not options.endpoint:
            raise ConfigError(
                "kubeflow.endpoint is not set: the URL of the Kubeflow Pipelines API, as in "
                "http://localhost:8080 after "
                "kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"
            )
        token = _secret(options.token_env, "kubeflow.token_env")
        cookies = _secret(options.cookies_env, "kubeflow.cookies_env")
        self._options = options
        _knock(options, token or _token_in(options.token_file), cookies)
        # kfp is imported here: it takes seconds.
        import kfp_server_api
        from kfp.client import Client
        from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

        self._api = kfp_server_api
        with warnings.catch_warnings(), self._reaching("connect"):
            warnings.simplefilter("ignore")
            self._client = Client(
                host=options.endpoint,
                # "kubeflow" means none: what there is without several users.
                namespace=options.namespace or "kubeflow",
                existing_token=token,
                credentials=(
                    ServiceAccountTokenVolumeCredentials(options.token_file)
                    if options.token_file
                    else None
                ),
                cookies=cookies,
                ssl_ca_cert=options.ca_file or None,
            )

    def experiment(self) -> str:
        """Returns the id of the configured experiment, made if it isn't there."""
        with self._reaching("make an experiment"):
            namespace = self._options.namespace or None
            found = self._client.create_experiment(self._options.experiment, namespace=namespace)
        return str(found.experiment_id)

    def upload(self, package: str) -> tuple[str, str]:
        """Uploads a package as a version of the configured pipeline.

        A version is named after its content: the same package is not uploaded twice.

        Returns:
          The ids of the pipeline and of the version.
        """
        name = hashlib.sha256(package.encode()).hexdigest()[:12]
        with tempfile.TemporaryDirectory() as folder, self._reaching("upload the pipeline"):
            path = Path(folder) / "pipeline.yaml"
            path.write_text(package, encoding="utf-8")
            pipeline_id = self._client.get_pipeline_id(self._options.name)
            if pipeline_id is None:
                namespace = self._options.namespace or None
                made = self._client.upload_pipeline(
                    str(path), pipeline_name=self._options.name, namespace=namespace
                )
                pipeline_id = made.pipeline_id
            known = self._version(str(pipeline_id), name)
            if known is None:
                version = self._client.upload_pipeline_version(
                    str(path), pipeline_version_name=name, pipeline_id=pipeline_id
                )
                known = str(version.pipeline_version_id)
        return str(pipeline_id), known

    def start(
        self, pipeline: tuple[str, str], title: str, parameters: Mapping[str, str], cache: bool
    ) -> str:
        """Starts a run and returns its id."""
        with self._reaching("start a run"):
            run = self._client.run_pipeline(
                experiment_id=self.experiment(),
                job_name=title,
                params=dict(parameters),
                pipeline_id=pipeline[0],
                version_id=pipeline[1],
                # Each task has its own setting in the package; this one can only take it away.
                enable_caching=None if cache else False,
                service_account=self._options.service_account or None,
            )
        return str(run.run_id)

    def state(self, run_id: str) -> RunState:
        """Returns where a run stands."""
        with self._reaching("ask for the run"):
            run = self._client.get_run(run_id)
        details = (run.run_details and run.run_details.task_details) or []
        tasks = tuple(
            Task(
                id=str(one.task_id or ""),
                name=str(one.display_name or ""),
                state=str(one.state or "PENDING"),
                pod=str(one.pod_name or ""),
                children=tuple(
                    str(child.task_id or child.pod_name) for child in one.child_tasks or []
                ),
            )
            for one in details
        )
        error = str(run.error.message) if run.error and run.error.message else ""
        return RunState(run_id, str(run.state or "PENDING"), error, tasks)

    def result_line(self, run: RunState) -> dict[str, Any] | None:
        """Returns the result that the exit task printed, or None where its log can't be read."""
        for node in _nodes_below(run, names.REPORT):
            text = self._log(run.id, node)
            for line in reversed(text.splitlines()):
                _, found, content = line.partition(names.RESULT_LINE)
                if found:
                    loaded: dict[str, Any] = json.loads(content)
                    return loaded
        return None

    def schedule(
        self,
        pipeline: tuple[str, str],
        title: str,
        parameters: Mapping[str, str],
        cron: str | None,
        every_seconds: int | None,
    ) -> str:
        """Makes a recurring run: one at a time, and none for a time that was missed."""
        with self._reaching("make the schedule"):
            made = self._client.create_recurring_run(
                experiment_id=self.experiment(),
                job_name=title,
                cron_expression=cron,
                interval_second=every_seconds,
                max_concurrency=1,
                no_catchup=True,
                params=dict(parameters),
                pipeline_id=pipeline[0],
                version_id=pipeline[1],
                service_account=self._options.service_account or None,
            )
        return str(made.recurring_run_id)

    def schedules(self) -> list[Any]:
        """Returns the recurring runs of the configured experiment."""
        found: list[Any] = []
        token = ""
        experiment = self.experiment()
        with self._reaching("list the schedules"):
            while True:
                page = self._client.list_recurring_runs(
                    page_token=token, page_size=_PAGE, experiment_id=experiment
                )
                found += page.recurring_runs or []
                token = page.next_page_token or ""
                if not token:
                    return found

    def pause(self, schedule_id: str) -> None:
        """Stops a schedule from starting runs; those that run go on."""
        with self._reaching("pause the schedule"):
            self._client.disable_recurring_run(schedule_id)

    def resume(self, schedule_id: str) -> None:
        """Lets a paused schedule start runs again."""
        with self._reaching("resume the schedule"):
            self._client.enable_recurring_run(schedule_id)

    def delete(self, schedule_id: str) -> None:
        """Removes a schedule; the runs that it started stay."""
        with self._reaching("delete the schedule"):
            self._client.delete_recurring_run(schedule_id)

    def page(self, run_id: str) -> str:
        """Returns the URL of a run's page."""
        return f"{self._options.endpoint.rstrip('/')}/#/runs/details/{run_id}"

    def _version(self, pipeline_id: str, name: str) -> str | None:
        token = ""
        while True:
            page = self._client.list_pipeline_versions(
                pipeline_id, page_token=token, page_size=_PAGE
            )
            for one in page.pipeline_versions or []:
                if one.display_name == name:
                    return str(one.pipeline_version_id)
            token = page.next_page_token or ""
            if not token:
                return None

    def _log(self, run_id: str, node: str) -> str:
        """Returns a node's log, "" where the server has none (any more)."""
        client = self._client._run_api.api_client  # the one that knows how to be let in
        try:
            text = client.call_api(
                f"/apis/v1alpha1/runs/{run_id}/nodes/{node}/log",
                "GET",
                header_params={"Accept": "text/plain"},
                response_type="str",
                auth_settings=["Bearer"],
                _return_http_data_only=True,
            )
        except self._api.ApiException:
            return ""
        return str(text)

    @contextmanager
    def _reaching(self, what: str) -> Iterator[None]:
        """Says in our words what the client raises."""
        from urllib3.exceptions import HTTPError

        place = self._options.endpoint
        try:
            # The client prints links; standard output is for what was asked for.
            with redirect_stdout(sys.stderr):
                yield
        except self._api.ApiException as error:
            told = _refusal(place, what, error.status, error.body)
            raise ServerError(told, error.status) from None
        except (HTTPError, OSError, ValueError) as error:
            raise _unreachable(place, what, error) from None


def _knock(options: Kubeflow, token: str | None, cookies: str | None) -> None:
    """Asks once whether the server lets us in: kfp's client takes 25 s to find that it doesn't.

    Raises:
      ServerError: it can't be reached, or refused.
    """
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    if cookies is not None:
        headers["Cookie"] = cookies
    url = f"{options.endpoint.rstrip('/')}/apis/v2beta1/healthz"
    try:
        answer = requests.get(
            url, headers=headers, timeout=_KNOCK_SECONDS, verify=options.ca_file or True
        )
    except (requests.RequestException, OSError) as error:
        raise _unreachable(options.endpoint, "connect", error) from None
    if not answer.ok:
        told = _refusal(options.endpoint, "connect", answer.status_code, answer.text)
        raise ServerError(told, answer.status_code)


def _unreachable(place: str, what: str, error: Exception) -> ServerError:
    return ServerError(
        f"Could not {what} at {place}: {error}. Check kubeflow.endpoint, and that the server is "
        "reachable from here (a port-forward that ended, perhaps)."
    )


def _refusal(place: str, what: str, status: int, body: str) -> str:
    try:
        told = json.loads(body)
        reason = str(told.get("error_message") or told.get("message") or told)[:500]
    except (ValueError, TypeError, AttributeError):
        reason = str(body)[:200]
    advice = {
        401: "Set kubeflow.token_env, kubeflow.token_file or kubeflow.cookies_env to a valid one.",
        403: "The account lacks the right, or kubeflow.namespace is another's.",
        404: "Check kubeflow.endpoint: is it the address of the Kubeflow Pipelines API?",
    }.get(status, "The server's log says more.")
    return f"Could not {what} at {place} (HTTP {status}): {reason}. {advice}"


def _token_in(path: str) -> str | None:
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"kubeflow.token_file is {path!r}, which can't be read ({error}); expected a file with "
            "a bearer token, as a projected service account token is."
        ) from None


def _secret(variable: str, key: str) -> str | None:
    if not variable:
        return None
    value = os.environ.get(variable)
    if not value:
        raise ConfigError(f"{key} names the environment variable {variable}, which is not set.")
    return value


def _nodes_below(run: RunState, name: str) -> list[str]:
    """Returns the ids and pods of a task and of all below it, the deepest first."""
    by_id = {one.id: one for one in run.tasks} | {one.pod: one for one in run.tasks if one.pod}
    queue = [one for one in run.tasks if one.name == name]
    found: list[str] = []
    while queue:
        task = queue.pop(0)
        for node in (task.pod, task.id, *task.children):
            if node and node not in found:
                found.append(node)
                below = by_id.get(node)
                if below is not None and below is not task:
                    queue.append(below)
    return found[::-1]
