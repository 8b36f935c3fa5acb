"""Rules of ours for what runs on a cluster, each of which a schema cannot know."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import KUBERNETES, ROOT, Manifest, Pod, clusters, manifests, pods

PODS = list(pods())
GROUPS = [pod for pod in PODS if pod.group]
CLUSTERS = clusters()
each_pod = pytest.mark.parametrize("pod", PODS, ids=str)
each_group = pytest.mark.parametrize("pod", GROUPS, ids=str)
each_cluster = pytest.mark.parametrize(("manifest", "spec"), CLUSTERS, ids=lambda v: str(v)[:60])


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number: 200m, 12Gi, 4."""
    number, unit = re.fullmatch(r"([\d.]+)(m|[KMGT]i)?", str(text)).groups()  # type: ignore[union-attr]
    factor = {None: 1.0, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}[unit]
    return float(number) * factor


def pinned(image: str) -> bool:
    """Whether an image is named by digest or by a version, which `latest` is not."""
    return bool(re.search(r"@sha256:[0-9a-f]{64}$|:v?\d+(\.\d+)+[\w.-]*$", image))


@each_pod
def test_no_pod_runs_as_root(pod: Pod) -> None:
    security = pod.spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    for container in pod.containers:
        assert container["securityContext"].get("runAsUser", 1) > 0


@each_pod
def test_every_pod_meets_the_restricted_standard(pod: Pod) -> None:
    spec = pod.spec
    assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
    allowed = {"name", "emptyDir", "secret", "configMap", "persistentVolumeClaim", "projected"}
    for volume in spec.get("volumes", []):
        assert set(volume) <= allowed, "no hostPath and no others outside the standard"
    for container in pod.containers:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert not security.get("privileged", False)
        assert not any("hostPort" in port for port in container.get("ports", []))


@each_pod
def test_the_root_file_system_is_read_only_and_what_is_written_is_bounded(pod: Pod) -> None:
    for container in pod.containers:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
    for volume in pod.spec["volumes"]:
        assert "emptyDir" not in volume or quantity(volume["emptyDir"]["sizeLimit"]) > 0


@each_pod
def test_requests_and_limits_are_set(pod: Pod) -> None:
    for container in pod.containers:
        requests, limits = (container["resources"][name] for name in ("requests", "limits"))
        for resource in ("cpu", "memory"):
            assert 0 < quantity(requests[resource]) <= quantity(limits[resource])
        # Ray divides the memory of its limit among tasks: less than the limit would be killed.
        if container["name"].startswith("ray-") and pod.where != "submitter":
            assert requests["memory"] == limits["memory"]
        assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu")


@each_pod
def test_images_are_pinned(pod: Pod) -> None:
    assert all(pinned(container["image"]) for container in pod.containers)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("registry.example.com/d2det:0.1.0", True),
        ("registry.example.com/d2det:0.1.0-cpu", True),
        ("registry.example.com/d2det@sha256:" + "0" * 64, True),
        ("registry.example.com/d2det:latest", False),
        ("registry.example.com/d2det", False),
        ("registry.example.com:5000/d2det", False),
    ],
)
def test_pinned_knows_a_moving_name(image: str, expected: bool) -> None:
    assert pinned(image) is expected


@each_pod
def test_token_authentication_is_on_in_every_pod(pod: Pod) -> None:
    for container in pod.containers:
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert environment["RAY_AUTH_MODE"] == "token"
        assert not any("TOKEN" in name and value for name, value in environment.items())


@each_cluster
def test_token_authentication_is_on_in_every_cluster(
    manifest: Manifest, spec: dict[str, Any]
) -> None:
    assert spec["authOptions"]["mode"] == "token"


@each_cluster
def test_ray_is_the_version_that_is_tested(manifest: Manifest, spec: dict[str, Any]) -> None:
    (version,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert spec["rayVersion"] == version


@each_cluster
def test_the_head_does_no_work(manifest: Manifest, spec: dict[str, Any]) -> None:
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@each_group
def test_pools_are_labelled(pod: Pod) -> None:
    labels = pod.group["labels"]
    assert labels["d2det.io/pool"] == pod.where
    limits = pod.containers[0]["resources"]["limits"]
    has_gpu = "nvidia.com/gpu" in limits
    assert has_gpu == ("ray.io/accelerator-type" in labels)
    if has_gpu:
        accelerator = labels["ray.io/accelerator-type"].lower()
        assert accelerator in pod.where
        assert pod.spec["nodeSelector"]["d2det.io/accelerator"] == accelerator
        assert any(t["key"] == "nvidia.com/gpu" for t in pod.spec["tolerations"])


@each_group
def test_pools_scale_within_bounds(pod: Pod) -> None:
    group = pod.group
    assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] <= 64


@each_group
def test_spot_pools_have_grace_and_a_taint_of_their_own(pod: Pod) -> None:
    is_spot = pod.group["labels"].get("d2det.io/spot") == "true"
    tolerates = any(t["key"] == "d2det.io/spot" for t in pod.spec.get("tolerations", []))
    assert is_spot == tolerates == ("spot" in pod.where)
    if is_spot:
        assert pod.spec["terminationGracePeriodSeconds"] >= 60


def test_there_are_unequal_gpu_pools_and_a_cpu_pool() -> None:
    (content,) = [m.content for m in manifests() if m.path.name == "raycluster.yaml"]
    labels = [group["labels"] for group in content["spec"]["workerGroupSpecs"]]
    accelerators = {found for each in labels if (found := each.get("ray.io/accelerator-type"))}
    assert len(accelerators) >= 3
    assert any("ray.io/accelerator-type" not in each for each in labels)
    assert any(each.get("d2det.io/spot") == "true" for each in labels)


@each_group
def test_workers_hold_no_key_to_the_kubernetes_api(pod: Pod) -> None:
    assert pod.spec["automountServiceAccountToken"] is False


@each_cluster
def test_the_object_store_fits_into_shared_memory(manifest: Manifest, spec: dict[str, Any]) -> None:
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (size,) = [
            volume["emptyDir"]["sizeLimit"]
            for volume in group["template"]["spec"]["volumes"]
            if volume.get("emptyDir", {}).get("medium") == "Memory"
        ]
        assert int(group["rayStartParams"]["object-store-memory"]) <= quantity(size)


def test_the_namespace_enforces_the_restricted_standard() -> None:
    (content,) = [m.content for m in manifests() if m.kind == "Namespace"]
    labels = content["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_everything_lives_in_the_namespace() -> None:
    (space,) = [m.content["metadata"]["name"] for m in manifests() if m.kind == "Namespace"]
    for manifest in manifests():
        if manifest.kind != "Namespace":
            assert manifest.content["metadata"]["namespace"] == space, str(manifest)


def test_the_network_is_closed_by_default_and_opened_by_name() -> None:
    policies = [m.content["spec"] for m in manifests() if m.kind == "NetworkPolicy"]
    (closed,) = [p for p in policies if p["podSelector"] == {}]
    assert sorted(closed["policyTypes"]) == ["Egress", "Ingress"]
    assert "ingress" not in closed
    assert "egress" not in closed
    for policy in policies:
        for rule in policy.get("ingress", []):
            assert rule.get("from"), "no rule lets everybody in"
            if not any("podSelector" in peer for peer in rule["from"]):
                assert rule.get("ports"), "others get single ports"
        for rule in policy.get("egress", []):
            for peer in rule["to"]:
                block = peer.get("ipBlock")
                assert block is None or "169.254.0.0/16" in block["except"]


def test_no_secret_is_written_down() -> None:
    """Secrets are made by command; a manifest only names them."""
    for path in KUBERNETES.glob("*.yaml"):
        for content in yaml.safe_load_all(path.read_text()):
            assert content["kind"] != "Secret"
        assert not re.search(
            r"(password|secret_?key|token):\s*[A-Za-z0-9+/]{16,}", path.read_text()
        )
