"""The stand-in server does what Kubeflow Pipelines does, as far as our packages can tell."""

import json

import pytest

from tests.conformance.packages import package
from tests.conformance.server import Server

# Finds a path in the executor input, which the launcher puts in place of the placeholder.
READ = "path() { echo '{{$}}' | python -c \"import json,sys; print(json.load(sys.stdin)$1)\"; }\n"
OUT = READ + "out=$(path \"['outputs']['artifacts']['a']['artifacts'][0]['customPath']\")\n"
IN = READ + "in=$(path \"['inputs']['artifacts']['a']['artifacts'][0]['customPath']\")\n"


@pytest.fixture()
def server(tmp_path):
    return Server(tmp_path)


def test_artifacts_go_from_pod_to_pod(server):
    text = package(
        {
            "make": {"shell": OUT + "mkdir -p $out; echo hello > $out/file", "out": ["a"]},
            "take": {"shell": IN + "cat $in/file", "in": {"a": "make"}},
        }
    )
    run = server.run(text, {})
    assert run.state == "SUCCEEDED"
    assert "hello" in run.tasks["take"].log
    assert run.tasks["make"].artifacts["a"]["uri"].startswith("minio://")


def test_an_empty_folder_does_not_arrive(server):
    text = package(
        {
            "make": {"shell": OUT + "mkdir -p $out", "out": ["a"]},
            "take": {"shell": IN + "test ! -e $in", "in": {"a": "make"}},
        }
    )
    assert server.run(text, {}).state == "SUCCEEDED"


def test_parameters_and_conditions(server):
    when = "inputs.parameter_values['x'] == 'yes'"
    say = (
        READ
        + "path \"['outputs']['parameters']['p']['outputFile']\" > f; printf %s \"$1\" > $(cat f)"
    )
    given = {"x": {"taskOutputParameter": {"producerTask": "say", "outputParameterKey": "p"}}}
    for value, state in (("yes", "SUCCEEDED"), ("no", "SKIPPED")):
        shell = say.replace('"$1" >', f"{value} >")
        text = package(
            {
                "say": {"shell": shell, "params": ["p"]},
                "act": {"shell": "true", "given": given, "needs": ["say"], "when": when},
            }
        )
        run = server.run(text, {})
        assert run.tasks["act"].state == state
        assert run.state == "SUCCEEDED"


def test_a_failure_stops_what_depends_on_it_and_the_exit_task_still_runs(server):
    text = package(
        {
            "bad": {"shell": "exit 4"},
            "after": {"shell": "true", "needs": ["bad"]},
            "beside": {"shell": "true"},
        }
    )
    run = server.run(text, {})
    states = {name: task.state for name, task in run.tasks.items()}
    assert (states["bad"], states["after"], states["beside"]) == ("FAILED", "OMITTED", "SUCCEEDED")
    assert (run.state, run.tasks["bad"].exit_code) == ("FAILED", 4)
    assert (
        json.loads(run.tasks["report"].log)["inputs"]["parameterValues"]["status"]["state"]
        == "FAILED"
    )


def test_retries(server, tmp_path):
    shell = f'test "$KFP_RETRY_INDEX" = 2 || exit 1; touch {tmp_path}/done'
    run = server.run(package({"flaky": {"shell": shell, "retries": 2}}), {})
    assert (run.tasks["flaky"].state, run.tasks["flaky"].tries) == ("SUCCEEDED", 3)
    run = server.run(package({"flaky": {"shell": "exit 1", "retries": 1}}), {})
    assert (run.tasks["flaky"].state, run.tasks["flaky"].tries) == ("FAILED", 2)


def test_the_cache_knows_inputs_and_command(server):
    given = {"x": {"componentInputParameter": "x"}}
    parameters = {"x": {"parameterType": "STRING"}}
    text = package({"make": {"shell": "true", "given": given, "cache": True}}, parameters)
    states = [server.run(text, {"x": value}).tasks["make"].state for value in ("1", "1", "2")]
    assert states == ["SUCCEEDED", "CACHED", "SUCCEEDED"]
    other = text.replace("'true'", "'true; true'").replace("- 'true", "- 'true")
    assert server.run(text, {"x": "1"}, no_cache=True).tasks["make"].state == "SUCCEEDED"
    assert other


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("2.1.0", "2.0.0"), "schema version"),
        (("componentInputParameter", "madeUp"), "madeUp is not implemented"),
    ],
)
def test_a_package_that_it_would_not_take(server, change, said):
    given = {"x": {"componentInputParameter": "x"}}
    text = package(
        {"make": {"shell": "true", "given": given}}, {"x": {"parameterType": "STRING"}}
    ).replace(*change)
    with pytest.raises(ValueError, match=said):
        server.run(text, {"x": "1"})


def test_parameters_are_checked(server):
    text = package({"make": {"shell": "true"}}, {"x": {"parameterType": "STRING"}})
    with pytest.raises(ValueError, match="without a value"):
        server.run(text, {})
    with pytest.raises(ValueError, match="unknown parameters"):
        server.run(text, {"x": "1", "y": "2"})
