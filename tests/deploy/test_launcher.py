"""Files of Ray's cluster launcher: valid by Ray's own schema, and safe by our rules."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray

from tests.deploy.manifests import ROOT, read
from tests.deploy.test_rules import pinned

FILES = sorted((ROOT / "deploy" / "launcher").glob("*.yaml"))
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def content(path: Path) -> dict[str, Any]:
    (document,) = read(path)
    return dict(document)


def test_there_is_one_on_premises_and_one_in_a_cloud() -> None:
    providers = {content(path)["provider"]["type"] for path in FILES}
    assert "local" in providers
    assert providers & {"aws", "gcp", "azure"}


@each_file
def test_a_file_is_valid_by_rays_schema(path: Path) -> None:
    jsonschema.validate(content(path), SCHEMA, jsonschema.Draft4Validator)


@each_file
def test_an_error_in_a_file_is_caught(path: Path) -> None:
    for change in ({"max_worker": 3}, {"max_workers": "three"}, {"docker": []}):
        broken = copy.deepcopy(content(path)) | change
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, SCHEMA, jsonschema.Draft4Validator)


@each_file
def test_every_node_starts_with_the_token_and_a_closed_dashboard(path: Path) -> None:
    found = content(path)
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [line for line in found[name] if "ray start" in line]
        assert start.startswith("RAY_AUTH_MODE=token ")
        assert "--object-store-memory=" in start
        assert ("--head" in start) == ("--dashboard-host=127.0.0.1" in start)
    assert found["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in line for line in found["initialization_commands"])


@each_file
def test_containers_are_pinned_and_without_privileges(path: Path) -> None:
    docker = content(path)["docker"]
    assert pinned(docker["image"])
    assert {"--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=1000:1000"} <= set(
        docker["run_options"]
    )


def test_the_cloud_has_unequal_pools_with_labels_and_spot_machines() -> None:
    (cloud,) = [content(path) for path in FILES if "available_node_types" in content(path)]
    pools = cloud["available_node_types"]
    assert {name: pool["labels"]["d2det.io/pool"] for name, pool in pools.items()} == {
        name: name for name in pools
    }
    gpus = {pool["node_config"]["InstanceType"] for name, pool in pools.items() if "gpu" in name}
    assert len(gpus) >= 3
    spots = [pool for pool in pools.values() if pool["labels"].get("d2det.io/spot") == "true"]
    assert spots
    assert all("InstanceMarketOptions" in pool["node_config"] for pool in spots)
    for pool in pools.values():
        assert pool["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        (disk,) = pool["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["Encrypted"] is True
