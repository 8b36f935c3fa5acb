"""The endpoint's configuration on clusters: every key is one that Serve, or the endpoint, knows."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

from d2det_platform.serve.options import ServeOptions
from tests.deploy.manifests import ROOT, manifests

FOLDER = ROOT / "deploy" / "serve"
FILES = sorted(path for path in FOLDER.glob("*.yaml"))
(SERVICE,) = [m.content for m in manifests() if m.kind == "RayService"]
CONFIGS = {"rayservice.yaml": yaml.safe_load(SERVICE["spec"]["serveConfigV2"])} | {
    path.name: yaml.safe_load(path.read_text()) for path in FILES
}
each_config = pytest.mark.parametrize("name", CONFIGS)


def unknown(content: Any, model: type[BaseModel], place: str = "") -> list[str]:
    """Keys that Serve's schema does not have: it takes them without a word."""
    found = []
    for key, value in content.items():
        field = model.model_fields.get(key)
        if field is None:
            found.append(f"{place}{key}")
            continue
        inner = next(
            (
                kind
                for kind in (field.annotation, *getattr(field.annotation, "__args__", ()))
                if isinstance(kind, type) and issubclass(kind, BaseModel)
            ),
            None,
        )
        if inner is not None:
            for part in value if isinstance(value, list) else [value]:
                found += unknown(part, inner, f"{place}{key}.")
    return found


@each_config
def test_serve_takes_the_file_and_knows_every_key(name: str) -> None:
    ServeDeploySchema.model_validate(CONFIGS[name])
    assert unknown(CONFIGS[name], ServeDeploySchema) == []


def test_a_misspelt_key_is_caught() -> None:
    content = json.loads(json.dumps(CONFIGS["rayservice.yaml"]))
    content["applications"][0]["import_pth"] = "x"
    content["http_options"]["prot"] = 1
    assert unknown(content, ServeDeploySchema) == ["http_options.prot", "applications.import_pth"]


@each_config
def test_the_application_takes_its_arguments(name: str) -> None:
    for application in CONFIGS[name]["applications"]:
        module, _, function = application["import_path"].partition(":")
        assert callable(getattr(importlib.import_module(module), function))
        options = ServeOptions.model_validate(application["args"])
        assert options.keys is not None, "beyond one machine nobody serves without keys"
        with pytest.raises(ValueError, match="did you mean"):
            ServeOptions.model_validate(application["args"] | {"kesy": "x"})


def test_the_service_is_the_file_that_serve_deploys() -> None:
    path = FOLDER / "config.yaml"
    if not path.exists():
        pytest.skip("needs deploy/serve/config.yaml")
    assert yaml.safe_load(path.read_text()) == CONFIGS["rayservice.yaml"]


def test_pods_of_the_service_have_the_variables_weights_and_keys() -> None:
    options = CONFIGS["rayservice.yaml"]["applications"][0]["args"]
    cluster = SERVICE["spec"]["rayClusterConfig"]
    script = FOLDER / "environment.sh"
    text = script.read_text() if script.exists() else "RAY_SERVE_ENABLE_HA_PROXY=1"
    wanted = dict(re.findall(r"(RAY_\w+)=(\S+)", text))
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert environment.items() >= wanted.items()
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        for file in (options["weights"], options["keys"]):
            assert mounts[str(Path(file).parent)]["readOnly"] is True
