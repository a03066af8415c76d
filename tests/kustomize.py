"""Builds a Kustomize folder as far as deploy/ uses it, so that tests build every overlay.

Follows Kustomize 5: resources, namespace, labels with selectors, images, JSON patches with a
target, and ConfigMap generators with `behavior: merge`. Anything else in a kustomization is an
error here.
Where a `kustomize` binary is on the PATH, a test compares the two.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

_KNOWN = {
    "apiVersion", "kind", "namespace", "resources", "labels", "images", "patches",
    "configMapGenerator",
}  # fmt: skip
_CLUSTER_WIDE = {"Namespace", "PersistentVolume", "ClusterRole", "ClusterRoleBinding"}
_SELECTED = {
    "Deployment": (("spec", "selector", "matchLabels"), ("spec", "template", "metadata", "labels")),
    "Service": (("spec", "selector"),),
    "PodDisruptionBudget": (("spec", "selector", "matchLabels"),),
}


def build(folder: Path) -> list[Manifest]:
    """Returns the manifests that this folder's kustomization gives, with final names."""
    return _named(_build(folder))


def _build(folder: Path) -> list[Manifest]:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(kustomization) - _KNOWN
    assert not unknown, f"{folder}: {unknown} is not built here"
    manifests: list[Manifest] = []
    for resource in kustomization.get("resources", []):
        path = (folder / resource).resolve()
        if path.is_dir():
            manifests += _build(path)
        else:
            manifests += [one for one in yaml.safe_load_all(path.read_text()) if one]
    for generator in kustomization.get("configMapGenerator", []):
        _generate(manifests, generator, folder)
    for labels in kustomization.get("labels", []):
        _label(manifests, labels["pairs"], labels.get("includeSelectors", False))
    for image in kustomization.get("images", []):
        _retag(manifests, image)
    for patch in kustomization.get("patches", []):
        _patch(manifests, patch)
    if "namespace" in kustomization:
        for one in manifests:
            if one["kind"] not in _CLUSTER_WIDE:
                one["metadata"]["namespace"] = kustomization["namespace"]
                _move_subjects(one, kustomization["namespace"])
    return manifests


def _generate(manifests: list[Manifest], generator: Manifest, folder: Path) -> None:
    data = {Path(name).name: (folder / name).read_text() for name in generator["files"]}
    if generator.get("behavior") == "merge":
        [found] = [
            one
            for one in manifests
            if one["kind"] == "ConfigMap" and one["metadata"]["name"] == generator["name"]
        ]
        found["data"].update(data)
        return
    metadata = {"name": generator["name"], "annotations": {"generated": "yes"}}
    manifests.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def _label(manifests: list[Manifest], pairs: dict[str, str], selectors: bool) -> None:
    for one in manifests:
        one["metadata"].setdefault("labels", {}).update(pairs)
        for path in _SELECTED.get(one["kind"], ()) if selectors else ():
            place = one
            for key in path:
                place = place.setdefault(key, {})
            place.update(pairs)


def _retag(manifests: list[Manifest], image: Manifest) -> None:
    def visit(value: Any) -> None:
        if isinstance(value, dict):
            if value.get("image", "").split(":")[0] == image["name"]:
                value["image"] = f"{image.get('newName', image['name'])}:{image['newTag']}"
            for child in value.values():
                visit(child)
        elif isinstance(value, list):
            for child in value:
                visit(child)

    for one in manifests:
        if one["kind"] in ("Deployment", "CronJob", "Job"):
            visit(one)


def _patch(manifests: list[Manifest], patch: Manifest) -> None:
    target = patch["target"]
    found = [
        one
        for one in manifests
        if one["kind"] == target["kind"] and one["metadata"]["name"] == target["name"]
    ]
    assert found, f"a patch meets nothing: {target}"
    for one in found:
        for step in yaml.safe_load(patch["patch"]):
            _apply(one, step)


def _apply(manifest: Manifest, step: Manifest) -> None:
    """Applies one operation of a JSON patch (RFC 6902): add, replace or remove."""
    keys = [key.replace("~1", "/").replace("~0", "~") for key in step["path"].split("/")[1:]]
    place: Any = manifest
    for key in keys[:-1]:
        place = place[int(key)] if isinstance(place, list) else place[key]
    last: Any = keys[-1]
    if isinstance(place, list):
        last = len(place) if last == "-" else int(last)
    if step["op"] == "remove":
        del place[last]
    elif step["op"] == "replace":
        assert isinstance(place, list) or last in place, f"nothing to replace at {step['path']}"
        place[last] = copy.deepcopy(step["value"])
    elif isinstance(place, list):
        place.insert(last, copy.deepcopy(step["value"]))
    else:
        place[last] = copy.deepcopy(step["value"])


def _move_subjects(manifest: Manifest, namespace: str) -> None:
    for subject in manifest.get("subjects", []):
        if subject["kind"] == "ServiceAccount":
            # Kustomize leaves one that is written down as it is.
            subject.setdefault("namespace", namespace)


def _named(manifests: list[Manifest]) -> list[Manifest]:
    """Gives generated ConfigMaps a name with a hash, and says it wherever they are used."""
    renamed = {}
    for one in manifests:
        annotations = one["metadata"].get("annotations", {})
        if annotations.pop("generated", None):
            if not annotations:
                del one["metadata"]["annotations"]
            digest = hashlib.sha256(repr(sorted(one["data"].items())).encode()).hexdigest()[:10]
            renamed[one["metadata"]["name"]] = f"{one['metadata']['name']}-{digest}"
            one["metadata"]["name"] = renamed[one["metadata"]["name"]]
    for one in manifests:
        _rename(one, renamed)
    return manifests


def _rename(value: Any, renamed: dict[str, str]) -> None:
    if isinstance(value, dict):
        for key in ("configMap", "configMapRef"):
            reference = value.get(key)
            if isinstance(reference, dict) and reference.get("name") in renamed:
                reference["name"] = renamed[reference["name"]]
        for child in value.values():
            _rename(child, renamed)
    elif isinstance(value, list):
        for child in value:
            _rename(child, renamed)
