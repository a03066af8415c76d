"""`safelight compile`: the configured graph as a package for Kubeflow Pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from rich.markup import escape

from pipeline import config as configuration
from pipeline import console
from pipeline.config import Config
from pipeline.errors import UsageError

_HEADER: Final = """\
# Made by `safelight compile`; compile it again rather than edit it.
# Run it with `safelight submit`, or upload it on the Kubeflow Pipelines pages.
"""


def command(
    profile: str | None,
    overrides: Sequence[str],
    output: Path,
    data: str = "",
) -> int:
    """Writes the package; returns the exit code.

    Args:
      profile: as of every command; `kubeflow` is shipped.
      overrides: `section.key=value` each.
      output: a .yaml file.
      data: the default of the pipeline's parameter `data`.

    Raises:
      ConfigError: something would not run there.
      UsageError: the output can't be written.
    """
    if output.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--output {output}: Kubeflow Pipelines takes a file that ends in .yaml.")
    config = configuration.load(profile, overrides).config
    with console.stderr.status("compiling"):
        text = compile_package(config, data)
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--output {output} can't be written ({error.strerror}). Name a file in a folder that "
            "is there."
        ) from None
    named = "" if profile is None else f" --profile {profile}"
    console.stderr.print(
        f"Wrote [bold]{escape(str(output))}[/]. Run it: "
        + escape(f"safelight submit DATA{named} --package {output}"),
        soft_wrap=True,
    )
    return 0


def compile_package(config: Config, data: str = "") -> str:
    """Returns the package: the pipeline specification and the platform document, as YAML.

    Raises:
      ConfigError: something would not run there; its `reasons` say what to set.
    """
    # TFX is imported here, after every quick check of the command's.
    with console.native_silence():
        from tfx import version

        from pipeline.kubeflow import checks, graph, platform, spec

    nodes = graph.nodes(config)
    checks.check(config, [node.id for node in nodes], data)
    documents = [
        spec.pipeline_spec(config, nodes, f"safelight-tfx-{version.__version__}", data),
        platform.document(config.kubeflow, spec.steps(config, nodes)),
    ]
    validate(documents)
    dumped: str = yaml.safe_dump_all(documents, sort_keys=True, width=100, allow_unicode=True)
    return _HEADER + dumped


def validate(documents: Sequence[dict[str, Any]]) -> None:
    """Holds both documents to the protobufs of Kubeflow Pipelines.

    Raises:
      google.protobuf.json_format.ParseError: a field that they don't have.
    """
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    specification, platforms = documents
    json_format.ParseDict(specification, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(platforms, pipeline_spec_pb2.PlatformSpec())
    deployment = pipeline_spec_pb2.PipelineDeploymentConfig()
    json_format.ParseDict(specification["deploymentSpec"], deployment)
