"""The Kubernetes manifests fit together, the code, and the Pod Security Standard `restricted`.

No cluster is asked. Their schema was checked once with kubernetes-validate (docs/deploy.md).
"""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from cdc.config import load
from cdc.errors import Invalid

MANIFESTS = Path(__file__).parents[2] / "deploy" / "kubernetes"
Manifest = dict[str, Any]


def _manifest(name: str) -> Manifest:
    found: Manifest = yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text())
    return found


@pytest.fixture
def deployment() -> Manifest:
    return _manifest("deployment")


@pytest.fixture
def pod(deployment: Manifest) -> Manifest:
    found: Manifest = deployment["spec"]["template"]["spec"]
    return found


def violations(pod: Manifest) -> set[str]:
    """What the Pod Security Standard `restricted` would refuse (kubernetes.io, Pod Security Standards)."""
    context = pod.get("securityContext", {})
    volumes = {kind for volume in pod.get("volumes", []) for kind in volume if kind != "name"}
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    found = {
        "host namespaces": any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")),
        "volumes": bool(volumes - allowed),
        "runAsNonRoot": context.get("runAsNonRoot") is not True,
        "runAsUser": context.get("runAsUser") == 0,
        "seccompProfile": context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"),
    }
    for container in pod["containers"] + pod.get("initContainers", []):
        own = container.get("securityContext", {})
        found["privileged"] = found.get("privileged", False) or bool(own.get("privileged"))
        found["allowPrivilegeEscalation"] = own.get("allowPrivilegeEscalation") is not False
        found["capabilities"] = own.get("capabilities", {}).get("drop") != ["ALL"] or "add" in own["capabilities"]
        found["hostPort"] = any("hostPort" in port for port in container.get("ports", []))
    return {name for name, is_violated in found.items() if is_violated}


def test_the_pod_is_a_restricted_one_and_writes_nowhere(pod: Manifest) -> None:
    assert violations(pod) == set()
    assert all(container["securityContext"]["readOnlyRootFilesystem"] for container in pod["containers"])
    assert pod["automountServiceAccountToken"] is False


PLANTED: dict[str, Callable[[Manifest], object]] = {
    "host namespaces": lambda pod: pod.update(hostNetwork=True),
    "volumes": lambda pod: pod["volumes"].append({"name": "root", "hostPath": {"path": "/"}}),
    "runAsNonRoot": lambda pod: pod["securityContext"].pop("runAsNonRoot"),
    "runAsUser": lambda pod: pod["securityContext"].update(runAsUser=0),
    "seccompProfile": lambda pod: pod["securityContext"].update(seccompProfile={"type": "Unconfined"}),
    "privileged": lambda pod: pod["containers"][0]["securityContext"].update(privileged=True),
    "allowPrivilegeEscalation": lambda pod: pod["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"),
    "capabilities": lambda pod: pod["containers"][0]["securityContext"].update(capabilities={"drop": ["NET_RAW"]}),
    "hostPort": lambda pod: pod["containers"][0]["ports"][0].update(hostPort=9187),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_pod_that_is_not_restricted_is_found(pod: Manifest, fault: str) -> None:
    damaged = copy.deepcopy(pod)
    PLANTED[fault](damaged)
    assert violations(damaged) == {fault}


def _filled_in(directory: Path) -> dict[str, str]:
    """The volumes as files, angle brackets filled in, and the environment that finds them."""
    (directory / "cdc.toml").write_text(_manifest("configmap")["data"]["cdc.toml"])
    for name, text in _manifest("secret")["stringData"].items():
        (directory / name).write_text(re.sub(r"<[^>]+>", "0123456789abcdef", text))
        (directory / name).chmod(0o440)
    return {"CREDENTIALS_DIRECTORY": str(directory)}


def test_config_map_and_secret_are_a_configuration_that_loads(tmp_path: Path) -> None:
    settings = load(tmp_path / "cdc.toml", _filled_in(tmp_path))
    assert settings.http.token is not None
    assert settings.cache.url is not None
    assert "0123456789abcdef@db.example.net" in settings.postgres.dsn.get_secret_value()


def test_the_samples_of_the_secrets_are_refused_as_they_stand(tmp_path: Path) -> None:
    environment = _filled_in(tmp_path)
    (tmp_path / "http.token").write_text(_manifest("secret")["stringData"]["http.token"])
    with pytest.raises(Invalid) as raised:
        load(tmp_path / "cdc.toml", environment)
    assert "http.token" in raised.value.detail


def test_the_pod_mounts_what_there_is_where_it_is_looked_for(pod: Manifest) -> None:
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume.pop("name"): volume for volume in copy.deepcopy(pod["volumes"])}
    assert mounts["config"] == "/etc/waltier"
    assert {"name": "CREDENTIALS_DIRECTORY", "value": mounts["credentials"]} in container["env"]
    assert volumes["config"]["configMap"]["name"] == _manifest("configmap")["metadata"]["name"]
    assert volumes["credentials"]["secret"]["secretName"] == _manifest("secret")["metadata"]["name"]
    assert volumes["credentials"]["secret"]["defaultMode"] == 0o440


def test_everything_that_selects_finds_the_pods(deployment: Manifest) -> None:
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        _manifest("service")["spec"]["selector"],
        _manifest("poddisruptionbudget")["spec"]["selector"]["matchLabels"],
        _manifest("networkpolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector == labels for selector in selectors)
    assert _manifest("servicemonitor")["spec"]["selector"]["matchLabels"] == _manifest("service")["metadata"]["labels"]


def test_one_stands_by_and_neither_a_rollout_nor_a_drain_waits_for_it(deployment: Manifest, pod: Manifest) -> None:
    assert deployment["spec"]["replicas"] == 2
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert _manifest("poddisruptionbudget")["spec"]["minAvailable"] < deployment["spec"]["replicas"]
    (container,) = pod["containers"]
    assert "readinessProbe" not in container
    assert {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe")} == {"/livez"}


def test_the_probes_ask_the_port_that_the_service_listens_at(pod: Manifest, tmp_path: Path) -> None:
    (container,) = pod["containers"]
    (port,) = container["ports"]
    listen = load(tmp_path / "cdc.toml", _filled_in(tmp_path)).http.listen
    assert listen == f"0.0.0.0:{port['containerPort']}"
    assert (
        port["name"]
        == container["livenessProbe"]["httpGet"]["port"]
        == _manifest("service")["spec"]["ports"][0]["name"]
    )


def test_every_manifest_is_applied_or_optional() -> None:
    files = {path.name for path in MANIFESTS.glob("*.yaml")} - {"kustomization.yaml", "servicemonitor.yaml"}
    assert set(_manifest("kustomization")["resources"]) == files
