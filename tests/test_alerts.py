"""The rules of deploy/monitoring: in the form that Prometheus takes, on metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.monitor import Figure, Watched
from pipeline.retrain import daemon
from pipeline.retrain.policy import Decision
from pipeline.retrain.rounds import Round
from pipeline.runs import EXIT_CODES, Result

ROOT = Path(__file__).parents[1]
RULES = yaml.safe_load((ROOT / "deploy/monitoring/alerts.yaml").read_text())
MANIFEST = yaml.safe_load((ROOT / "deploy/monitoring/prometheusrule.yaml").read_text())
# What node_exporter and Prometheus itself bring, and kube-state-metrics.
OTHERS = {
    "up",
    "node_textfile_mtime_seconds",
    "kube_job_status_failed",
    "kube_cronjob_status_last_successful_time",
    "kube_cronjob_spec_suspend",
}
_METRIC = re.compile(r"\b(?:safelight|node|kube)_\w+|\bup\b")
WATCHED = Watched(
    requests=812,
    version=3,
    figures=(
        Figure("input brightness", 0.21, 0.1, True, "Darker."),
        Figure("score", -0.01, 0.1, False, "As before."),
    ),
)


def rules(groups):
    return [rule for group in groups for rule in group["rules"]]


def unquoted(expression: str) -> str:
    """Returns an expression without the texts in it: names there are labels' values."""
    return re.sub(r'"[^"]*"', '""', expression)


def exposed() -> dict[str, set[str]]:
    """{metric: labels} that the daemon serves once every outcome has been seen."""
    state = daemon._State(60)
    for outcome in EXIT_CODES:
        done = Round(Decision(False, ()), "", (), (), result=Result("r", outcome))
        state.count(done, version=3)
    state.ended("an error", healthy=False)
    families = text_string_to_metric_families(generate_latest(state.registry).decode())
    return {one.name: set(one.labels) for family in families for one in family.samples}


def figures(tmp_path) -> str:
    """Returns what the script of docs/monitoring.md writes about WATCHED."""
    text = (ROOT / "docs/monitoring.md").read_text()
    [script] = re.findall(r"<<'SH'\n(.*?)\nSH\n", text, re.DOTALL)
    (tmp_path / "figures").write_text(script + "\n")
    asked = tmp_path / "safelight"
    asked.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(asdict(WATCHED))}\nEND\n")
    asked.chmod(0o755)
    line = ["sh", str(tmp_path / "figures"), "requests.jsonl", "work", "model", str(tmp_path)]
    path = f"{tmp_path}:/usr/local/bin:/usr/bin:/bin"
    subprocess.run(line, env={"PATH": path}, check=True, timeout=60)
    return (tmp_path / "safelight.prom").read_text()


def test_cron_finds_what_its_file_starts():
    """Debian's cron has PATH=/usr/bin:/bin, whatever the machine's shells have."""
    text = (ROOT / "docs/monitoring.md").read_text()
    [file] = re.findall(r"<<'CRON'\n(.*?)\nCRON\n", text, re.DOTALL)
    setting, job = file.splitlines()
    [script] = re.findall(r"^cat > (\S+) <<'SH'$", text, re.MULTILINE)
    unit = (ROOT / "deploy/retraining/safelight-retrain.service").read_text()
    [command] = re.findall(r"^ExecStart=(\S+)", unit, re.MULTILINE)
    *_, user, started, _log, _workdir, _model, _folder = job.split()
    assert (user, started) == ("safelight", Path(script).name)
    folders = setting.removeprefix("PATH=").split(":")
    assert {str(Path(one).parent) for one in (script, command)} <= set(folders)


@pytest.mark.parametrize("groups", [RULES["groups"], MANIFEST["spec"]["groups"]])
def test_each_rule_is_whole(groups):
    assert len({group["name"] for group in groups}) == len(groups)
    names = [rule["alert"] for rule in rules(groups)]
    assert len(set(names)) == len(names) > 0
    for rule in rules(groups):
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
        assert re.fullmatch(r"Safelight[A-Za-z]+", rule["alert"])
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert re.fullmatch(r"\d+[mhd]", rule.get("for", "1m"))
        expression = unquoted(rule["expr"])
        for opening, closing in ("()", "[]", "{}"):
            assert expression.count(opening) == expression.count(closing)


def test_the_manifest_is_one_of_the_operators():
    assert MANIFEST["apiVersion"] == "monitoring.coreos.com/v1"
    assert MANIFEST["kind"] == "PrometheusRule"
    assert set(MANIFEST) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(MANIFEST["spec"]) == {"groups"}
    [job] = [
        one["metadata"]["name"]
        for one in yaml.safe_load_all((ROOT / "deploy/kubeflow/base/retrain.yaml").read_text())
    ]
    for rule in rules(MANIFEST["spec"]["groups"]):
        assert f'"{job}' in rule["expr"], rule["alert"]


def test_the_rules_ask_for_metrics_that_there_are():
    known = exposed().keys() | {"safelight_monitor_value", "safelight_monitor_bound"} | OTHERS
    for rule in rules([*RULES["groups"], *MANIFEST["spec"]["groups"]]):
        asked = set(_METRIC.findall(unquoted(rule["expr"])))
        assert asked and asked <= known, rule["alert"]
    [pushed] = [rule for rule in rules(RULES["groups"]) if rule["alert"] == "SafelightNotPushed"]
    [outcomes] = re.findall(r'outcome=~"([^"]+)"', pushed["expr"])
    assert set(outcomes.split("|")) == EXIT_CODES.keys() - {"pushed", "unchanged"}
    assert exposed()["safelight_trainings_total"] == {"outcome"}


def test_the_page_names_every_metric():
    text = (ROOT / "docs/monitoring.md").read_text()
    told = set(re.findall(r"^\| `(safelight_\w+)", text, re.MULTILINE))
    assert told == {name for name in exposed() if not name.endswith("_created")}


def test_the_figures_of_monitor_become_metrics(tmp_path):
    if shutil.which("jq") is None:
        return
    families = text_string_to_metric_families(figures(tmp_path))
    found = {
        (one.name, one.labels.get("figure")): one.value
        for family in families
        for one in family.samples
    }
    assert found == {
        ("safelight_monitor_requests", None): 812,
        ("safelight_monitor_value", "input brightness"): 0.21,
        ("safelight_monitor_bound", "input brightness"): 0.1,
        ("safelight_monitor_value", "score"): -0.01,
        ("safelight_monitor_bound", "score"): 0.1,
    }
    assert not list(tmp_path.glob(".*.new"))
