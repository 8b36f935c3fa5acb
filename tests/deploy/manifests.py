"""Reads the manifests, and validates them as an API server would."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
_SCHEMAS = Path(__file__).parent / "schemas"


@dataclass(frozen=True)
class Manifest:
    """One object of one file."""

    path: Path
    content: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.content["kind"])

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.kind}/{self.content['metadata']['name']}"


@dataclass(frozen=True)
class Pod:
    """A pod template somewhere in a manifest.

    where: name of the group, "head" or "submitter".
    group: the worker group around it; empty for others.
    """

    manifest: Manifest
    where: str
    template: dict[str, Any]
    group: dict[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        return dict(self.template["spec"])

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec["containers"], *self.spec.get("initContainers", [])]

    def __str__(self) -> str:
        return f"{self.manifest.path.name}:{self.where}"


class _Loader(yaml.CSafeLoader):
    """YAML in which a key that is given twice is an error, not a silent choice of the last."""


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    merge = "tag:yaml.org,2002:merge"
    plain = [key for key, _ in node.value if key.tag != merge]
    keys = [loader.construct_object(key, deep=True) for key in plain]
    doubled = {key for key in keys if keys.count(key) > 1}
    if doubled:
        raise yaml.YAMLError(f"{sorted(doubled)} given twice, {node.start_mark}")
    return yaml.SafeLoader.construct_mapping(loader, node, deep=deep)  # type: ignore[arg-type]


_Loader.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG,
    lambda loader, node: _mapping(loader, node, deep=True),
)


def read(path: Path) -> list[Any]:
    """Returns the documents of a YAML file."""
    return [document for document in yaml.load_all(path.read_text(), _Loader) if document]


def manifests() -> list[Manifest]:
    """Returns every object of deploy/kubernetes."""
    files = sorted(KUBERNETES.glob("*.yaml"))
    return [Manifest(path, content) for path in files for content in read(path)]


def clusters() -> list[tuple[Manifest, dict[str, Any]]]:
    """Returns every RayCluster spec, standing alone or inside a job or a service."""
    return [
        (manifest, spec)
        for manifest in manifests()
        if (spec := cluster_spec(manifest.content)) is not None
    ]


def cluster_spec(content: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the RayCluster spec in an object of KubeRay's."""
    spec = content.get("spec", {})
    if content["kind"] == "RayCluster":
        return dict(spec)
    if content["kind"] == "RayCronJob":
        spec = spec["jobTemplate"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig")


def pods() -> Iterator[Pod]:
    """Yields every pod template of every manifest."""
    for manifest, spec in clusters():
        yield Pod(manifest, "head", spec["headGroupSpec"]["template"], {})
        for group in spec["workerGroupSpecs"]:
            yield Pod(manifest, group["groupName"], group["template"], group)
    for manifest in manifests():
        submitter = manifest.content.get("spec", {}).get("submitterPodTemplate")
        if submitter is not None:
            yield Pod(manifest, "submitter", submitter, {})


def problems(content: dict[str, Any]) -> list[str]:
    """Returns what an API server would object to, and keys that it would drop."""
    kind = content.get("kind")
    schemas = _schemas()
    if kind not in schemas:
        return [f"no schema for kind {kind!r}"]
    schema = schemas[kind]
    filled = copy.deepcopy(content)
    _fill_defaults(filled, schema, schema)
    validator = jsonschema.Draft202012Validator(schema)
    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"[:300]
        for error in validator.iter_errors(filled)
    ]


@cache
def _schemas() -> dict[str, Any]:
    found = {}
    for path in _SCHEMAS.glob("*.json"):
        content = json.loads(path.read_text())
        defs = content.pop("$defs")
        found.update({kind: {**schema, "$defs": defs} for kind, schema in content.items()})
    return found


def _fill_defaults(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> None:
    """Fills in defaults, as the API server does before it validates."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    if isinstance(value, list):
        for item in value:
            _fill_defaults(item, schema.get("items", {}), root)
    if not isinstance(value, dict):
        return
    for name, part in schema.get("properties", {}).items():
        if name not in value and "default" in part:
            value[name] = copy.deepcopy(part["default"])
        if name in value:
            _fill_defaults(value[name], part, root)
