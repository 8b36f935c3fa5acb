"""Makes the schemas that the manifests are tested against from the published ones.

    python tests/deploy/make_schemas.py KUBERAY_CRDS KUBERNETES_SCHEMAS

KUBERAY_CRDS: folder of ray.io_*.yaml, as in KubeRay's repository (Apache-2.0).
KUBERNETES_SCHEMAS: folder of the "local-strict" JSON schemas of one Kubernetes version, as in
the PyPI package kubernetes-validate (Apache-2.0).

Descriptions are dropped and equal parts are kept once: 4 MB become 50 kB. An API server drops what
a schema does not name; here it is an error, for it is a misspelt key.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

KINDS = ("RayCluster", "RayJob", "RayService", "RayCronJob")
NATIVE = {
    "Namespace": "namespace-v1",
    "ServiceAccount": "serviceaccount-v1",
    "NetworkPolicy": "networkpolicy-networking-v1",
}
OUT = Path(__file__).parent / "schemas"
_SHARED_FROM = 120
"""Characters from which a part that occurs twice is worth a reference."""


def main() -> None:
    crds, native = map(Path, sys.argv[1:])
    write("kuberay.json", kuberay(crds))
    write("kubernetes.json", kubernetes(native))


def kuberay(folder: Path) -> dict[str, Any]:
    """Returns the v1 schema of each kind of KubeRay's."""
    schemas = {}
    for path in sorted(folder.glob("ray.io_*.yaml")):
        crd = yaml.load(path.read_text(), yaml.CSafeLoader)
        (version,) = (v for v in crd["spec"]["versions"] if v["name"] == "v1")
        schemas[crd["spec"]["names"]["kind"]] = strict(version["schema"]["openAPIV3Schema"])
    assert set(schemas) == set(KINDS)
    return schemas


def kubernetes(folder: Path) -> dict[str, Any]:
    """Returns the schema of each kind of Kubernetes's own that we use, with all they refer to."""
    definitions = json.loads((folder / "_definitions.json").read_text())["$defs"]

    def resolved(schema: Any) -> Any:
        if isinstance(schema, list):
            return [resolved(part) for part in schema]
        if not isinstance(schema, dict):
            return schema
        if "$ref" in schema:
            return resolved(definitions[schema["$ref"].rsplit("/", 1)[-1]])
        return {name: resolved(part) for name, part in schema.items()}

    found = {}
    for kind, name in NATIVE.items():
        found[kind] = strict(resolved(json.loads((folder / f"{name}.json").read_text())))
    return found


def strict(schema: Any) -> Any:
    """Returns an OpenAPI schema as JSON schema, where unknown keys are errors."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    new: dict[str, Any] = {}
    for name, part in schema.items():
        if name == "properties":
            new[name] = {key: strict(value) for key, value in part.items()}
        elif name not in ("description", "format", "$schema") and not name.startswith("x-"):
            new[name] = strict(part)
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if "properties" in schema and not is_open:
        new["additionalProperties"] = False
    if new.pop("nullable", False) and isinstance(new.get("type"), str):
        new["type"] = [new["type"], "null"]
    return new


def write(name: str, schemas: dict[str, Any]) -> None:
    """Writes schemas with parts that occur more than once under $defs."""
    counts: Counter[str] = Counter()

    def count(part: Any) -> None:
        if isinstance(part, dict):
            if "type" in part or "properties" in part:
                counts[_text(part)] += 1
            part = list(part.values())
        if isinstance(part, list):
            for below in part:
                count(below)

    def shared(part: Any) -> Any:
        if isinstance(part, list):
            return [shared(below) for below in part]
        if not isinstance(part, dict):
            return part
        text, new = _text(part), {key: shared(value) for key, value in part.items()}
        if counts[text] < 2 or len(text) < _SHARED_FROM:
            return new
        key = hashlib.sha256(text.encode()).hexdigest()[:10]
        defs[key] = new
        return {"$ref": f"#/$defs/{key}"}

    defs: dict[str, Any] = {}
    count(list(schemas.values()))
    kinds = {kind: shared(schema) for kind, schema in sorted(schemas.items())}
    text = _text({"$defs": dict(sorted(defs.items())), **kinds})
    (OUT / name).write_text(text.replace('},"', '},\n"') + "\n")


def _text(part: Any) -> str:
    return json.dumps(part, sort_keys=True, separators=(",", ":"))


if __name__ == "__main__":
    main()
