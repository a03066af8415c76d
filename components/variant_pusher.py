"""VariantPusher: puts blessed variants beside what was pushed, under the same version."""

import json
from pathlib import Path

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import PushedModel

from components.artifacts import Exports, Variants
from pipeline import model_json
from pipeline.variants import publish

FILE = "exports.json"


@component
def VariantPusher(
    pushed_model: InputArtifact[PushedModel],
    variants: InputArtifact[Variants],
    exports: OutputArtifact[Exports],
    exports_dir: Parameter[str],
    code: Parameter[str],
) -> None:
    """Writes exports.json: where each blessed variant is; nothing where no model was pushed.

    Args:
      pushed_model: of Pusher, with the version that it published or found.
      variants: of VariantMaker.
      exports: `version` and `exports`, {variant: directory}.
      exports_dir: `exports/` of the workdir.
      code: fingerprint of the sources, for the cache key.

    Raises:
      SafelightError: a variant can't be copied; what is served has not changed.
    """
    del code
    folder = Path(exports.uri)
    folder.mkdir(parents=True, exist_ok=True)
    found: dict = {"version": None, "exports": {}}
    if pushed_model.get_int_custom_property("pushed") == 1:
        version = int(pushed_model.get_string_custom_property("pushed_version"))
        served = Path(pushed_model.get_string_custom_property("pushed_destination"))
        by = pushed_model.get_string_custom_property("published_by")
        model = model_json.read(served)["fingerprint"]
        done = publish.publish(Path(variants.uri), Path(exports_dir), version, model, by)
        found = {"version": version, "exports": done}
    (folder / FILE).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
