"""Every manifest is what an API server takes, and the check would notice if it were not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import Manifest, cluster_spec, manifests, problems, read

MANIFESTS = manifests()
OURS = [manifest for manifest in MANIFESTS if manifest.kind.startswith("Ray")]
Change = Callable[[dict[str, Any]], object]


def first(kind: str) -> dict[str, Any]:
    """A copy of the first manifest of this kind, made from one of its relatives if there is none.

    Aliases are resolved, so that a change in one place is one change.
    """
    (content, *_) = [m.content for m in MANIFESTS if m.kind == kind]
    return dict(yaml.safe_load(yaml.dump(copy.deepcopy(content), Dumper=_Plain)))


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


@pytest.mark.parametrize("manifest", MANIFESTS, ids=str)
def test_manifest_is_valid(manifest: Manifest) -> None:
    assert problems(manifest.content) == []


def test_every_kind_of_deployment_is_there() -> None:
    kinds = {manifest.kind for manifest in MANIFESTS}
    assert kinds >= {"RayCluster", "RayJob", "RayService", "NetworkPolicy", "Namespace"}


def head(content: dict[str, Any]) -> dict[str, Any]:
    spec = cluster_spec(content)
    assert spec is not None
    return dict(spec["headGroupSpec"]["template"]["spec"]["containers"][0])


def misspell(content: dict[str, Any]) -> None:
    spec = cluster_spec(content)
    assert spec is not None
    spec["workerGroupSpecs"][0]["maxReplica"] = 3


def text_for_a_number(content: dict[str, Any]) -> None:
    spec = cluster_spec(content)
    assert spec is not None
    spec["workerGroupSpecs"][0]["replicas"] = "two"


def without_pod_template(content: dict[str, Any]) -> None:
    spec = cluster_spec(content)
    assert spec is not None
    del spec["workerGroupSpecs"][0]["template"]


def unknown_auth_mode(content: dict[str, Any]) -> None:
    spec = cluster_spec(content)
    assert spec is not None
    spec["authOptions"]["mode"] = "on"


def misspell_deep(content: dict[str, Any]) -> None:
    spec = cluster_spec(content)
    assert spec is not None
    container = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["securityContext"]["readOnlyRootFileSystem"] = True


def wrong_port(content: dict[str, Any]) -> None:
    content["spec"]["ingress"] = [{"ports": [{"port": 80, "protocol": 6}]}]


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "RayService"])
@pytest.mark.parametrize(
    "change",
    [misspell, text_for_a_number, without_pod_template, unknown_auth_mode, misspell_deep],
)
def test_an_error_in_a_cluster_is_caught(kind: str, change: Change) -> None:
    content = first(kind)
    assert problems(content) == []
    change(content)
    assert problems(content) != []


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        pytest.param("RayJob", lambda c: c["spec"].update(entryPoint="x"), id="job key"),
        pytest.param("RayJob", lambda c: c["spec"].update(backoffLimit="3"), id="job number"),
        pytest.param("RayService", lambda c: c["spec"].update(serveConfigV2={}), id="serve config"),
        pytest.param("RayService", lambda c: c["spec"].update(upgradeStrategy="New"), id="upgrade"),
        pytest.param("NetworkPolicy", wrong_port, id="policy port"),
        pytest.param("NetworkPolicy", lambda c: c["spec"].update(podselector={}), id="policy key"),
        pytest.param("Namespace", lambda c: c["metadata"].update(lables={}), id="namespace key"),
        pytest.param(
            "ServiceAccount", lambda c: c.update(automountServiceAccountToken="no"), id="account"
        ),
    ],
)
def test_an_error_in_any_kind_is_caught(kind: str, change: Change) -> None:
    content = first(kind)
    assert problems(content) == []
    change(content)
    assert problems(content) != []


def test_an_unknown_kind_is_caught() -> None:
    assert problems({"kind": "RayClutser"}) == ["no schema for kind 'RayClutser'"]


def test_a_key_given_twice_is_caught(tmp_path: Any) -> None:
    (tmp_path / "twice.yaml").write_text("kind: A\nspec: {a: 1}\nspec: {b: 2}\n")
    with pytest.raises(yaml.YAMLError, match="spec"):
        read(tmp_path / "twice.yaml")


def test_defaults_of_the_server_are_filled_in_before_validating() -> None:
    """minReplicas and maxReplicas are required, and have defaults."""
    content = first("RayCluster")
    del content["spec"]["workerGroupSpecs"][0]["minReplicas"]
    assert problems(content) == []
