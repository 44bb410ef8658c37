"""The Helm chart: what it renders is what Kubernetes and the server take. `make test-chart` runs it.

Helm comes in helm-python-sdk's wheel, the schemas of Kubernetes in kubernetes-validate's; no cluster is asked. Of the
custom resources only the fields that the chart uses are held, as their definitions have them.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from app import __version__
from app.settings import PREFIX, Settings

pytestmark = pytest.mark.chart
CHART = Path(__file__).parents[2] / "deploy" / "helm" / "whisper-gpt"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
ALL = {
    "autoscaling": {"kind": "hpa"},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "apiKeys": {"values": {"alice": "of-alice", "bob": "of-bob"}},
    "bundle": {"volume": {"persistentVolumeClaim": {"claimName": "weights"}}, "path": "mine"},
    "gpu": {"enabled": True},
    "podAnnotations": {"team": "audio"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "all": ALL,
    "keda": {"autoscaling": {"kind": "keda"}},
    "a secret of theirs": {"apiKeys": {"existingSecret": "theirs", "key": "keys"}},
    "long drain": {"settings": {"drain_seconds": 90.5, "drain_grace_seconds": 12}},
}
KINDS_WE_USE = {  # kind: (apiVersion, fields of spec that it must have, fields that it may have)
    "ServiceMonitor": ("monitoring.coreos.com/v1", {"selector", "endpoints"}, set()),
    "ScaledObject": (
        "keda.sh/v1alpha1",
        {"scaleTargetRef", "triggers"},
        {"minReplicaCount", "maxReplicaCount", "advanced"},
    ),
}


def rendered(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Manifests by kind."""
    helm = pytest.importorskip("helm_python", reason="needs Helm: make test-chart")
    chart = helm.Chart.load(str(CHART))
    chart.validate_schema(values)
    texts = chart.render(values, name="demo", namespace="audio")
    documents = [
        document
        for name, text in texts.items()
        if name.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]
    kinds = [document["kind"] for document in documents]
    assert len(set(kinds)) == len(kinds)
    return dict(zip(kinds, documents, strict=True))


@pytest.fixture(params=list(VARIANTS.values()), ids=list(VARIANTS))
def manifests(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    return rendered(request.param)


def pod_of(manifests: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod, and its only container."""
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def settings_of(manifests: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """As a server in the pod reads them."""
    for entry in pod_of(manifests)[1]["env"]:
        value = entry.get("value")
        if value is None and "Secret" in manifests:
            asked = entry["valueFrom"]["secretKeyRef"]
            assert asked["name"] == manifests["Secret"]["metadata"]["name"]
            value = manifests["Secret"]["stringData"][asked["key"]]
        if value is not None:
            monkeypatch.setenv(entry["name"], value)
    return Settings()


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS.keys())
def test_helm_lints_it(values: dict[str, Any]) -> None:
    helm = pytest.importorskip("helm_python", reason="needs Helm: make test-chart")
    report = helm.lint(str(CHART), values, strict=True)
    assert report["total_charts_linted"] == 1 and not report["errors"], report
    assert [message for message in report["messages"] if message["severity"] > 1] == []  # 1: information


@pytest.mark.parametrize("version", ["1.30", "1.37"])  # the oldest that Chart.yaml admits, the newest there is
def test_kubernetes_takes_it(version: str, manifests: dict[str, dict[str, Any]]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs its schemas: make test-chart")
    assert {"Deployment", "Service", "PodDisruptionBudget"} <= set(manifests)
    for kind, manifest in manifests.items():
        if kind not in KINDS_WE_USE:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_custom_resources_have_their_fields() -> None:
    found = {**rendered(VARIANTS["all"]), **rendered(VARIANTS["keda"])}
    for kind, (version, must, may) in KINDS_WE_USE.items():
        manifest = found[kind]
        assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"} and manifest["apiVersion"] == version
        assert must <= set(manifest["spec"]) <= must | may, kind
    (endpoint,) = found["ServiceMonitor"]["spec"]["endpoints"]
    assert set(endpoint) == {"port", "path", "interval"} and endpoint["path"] == "/metrics"
    for trigger in found["ScaledObject"]["spec"]["triggers"]:
        assert trigger["type"] == "prometheus"
        assert set(trigger["metadata"]) == {"serverAddress", "query", "threshold"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values())


def test_what_is_selected_is_there(manifests: dict[str, dict[str, Any]]) -> None:
    deployment, service = manifests["Deployment"], manifests["Service"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    (selected,) = [service["spec"]["selector"]]
    assert selected.items() <= labels.items()
    assert deployment["spec"]["selector"]["matchLabels"] == selected
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == selected
    _, container = pod_of(manifests)
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in ports
    if "ServiceMonitor" in manifests:
        spec = manifests["ServiceMonitor"]["spec"]
        assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert spec["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    for scaler in ("HorizontalPodAutoscaler", "ScaledObject"):
        if scaler in manifests:
            assert manifests[scaler]["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
            assert "replicas" not in deployment["spec"], "the two would fight over it"


def test_the_server_takes_the_settings(manifests: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | {"XDG_CACHE_HOME"}
    pod, container = pod_of(manifests)
    assert {entry["name"] for entry in container["env"]} <= known
    assert pod["enableServiceLinks"] is False, "a service's link may be called as a setting"
    settings = settings_of(manifests, monkeypatch)
    assert settings.host == "0.0.0.0"
    assert settings.port == container["ports"][0]["containerPort"]
    assert settings.threads == container["resources"]["requests"]["cpu"]


def test_the_drain_fits_into_the_grace(manifests: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """preStop, then the longer drain, then the 5 s after which the server cuts what is left, then some."""
    pod, container = pod_of(manifests)
    settings = settings_of(manifests, monkeypatch)
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = before + max(settings.drain_seconds, settings.drain_grace_seconds) + 5
    assert needed < pod["terminationGracePeriodSeconds"] <= needed + 6
    readiness = container["readinessProbe"]
    assert readiness["periodSeconds"] * readiness["failureThreshold"] < settings.drain_grace_seconds
    assert readiness["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"


def test_the_pod_is_held_as_the_compose_file_holds_it(manifests: dict[str, dict[str, Any]]) -> None:
    """And as Pod Security's level `restricted` wants it."""
    pod, container = pod_of(manifests)
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    held = container["securityContext"]
    assert held["readOnlyRootFilesystem"] and held["allowPrivilegeEscalation"] is False
    assert held["capabilities"] == {"drop": ["ALL"]}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert mounts["tmp"]["mountPath"] == "/tmp"
    if "bundle" in mounts:
        assert mounts["bundle"]["readOnly"]


def test_keys_are_in_a_secret_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rendered(ALL)
    keys = settings_of(found, monkeypatch).api_keys
    assert [(getattr(key, "name", ""), SecretStr.get_secret_value(key)) for key in keys] == [
        ("alice", "of-alice"), ("bob", "of-bob"),
    ]  # fmt: skip
    secret = found.pop("Secret")
    assert "of-alice" not in json.dumps(found) and "of-alice" in json.dumps(secret)
    theirs = rendered(VARIANTS["a secret of theirs"])
    (reference,) = [entry["valueFrom"] for entry in pod_of(theirs)[1]["env"] if "valueFrom" in entry]
    assert reference == {"secretKeyRef": {"name": "theirs", "key": "keys"}}
    assert "Secret" not in theirs


def test_new_keys_start_new_pods() -> None:
    def annotations(key: str) -> Any:
        values = {"apiKeys": {"values": {"alice": key}}}
        return rendered(values)["Deployment"]["spec"]["template"]["metadata"]["annotations"]

    assert annotations("one") != annotations("other")


def test_memory_is_what_operations_plans() -> None:
    planned = re.search(r"plan ([\d.]+) GiB", (CHART.parents[2] / "docs" / "operations.md").read_text())
    assert planned
    assert VALUES["resources"]["limits"]["memory"] == f"{float(planned[1]) * 1024:.0f}Mi"
    assert VALUES["resources"]["requests"]["memory"] == VALUES["resources"]["limits"]["memory"]
    assert "cpu" not in VALUES["resources"]["limits"], "a limit would stop threads in the middle of a step"


def test_metrics_that_scale_exist() -> None:
    from prometheus_client import generate_latest

    from app.metrics import Metrics

    known = set(re.findall(r"^# TYPE (\S+) gauge$", generate_latest(Metrics().registry).decode(), re.M))
    for variant in ("all", "keda"):
        asked = set(re.findall(r"whispergpt_\w+", json.dumps(rendered({**ALL, **VARIANTS[variant]}))))
        assert asked == {"whispergpt_requests_waiting", "whispergpt_requests_running"} <= known


def test_the_chart_is_of_this_version() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__


@pytest.mark.parametrize(
    "values",
    [
        {"replica": 3},
        {"autoscaling": {"kind": "HPA"}},
        {"resources": {"requests": {"cpu": "500m"}}},
        {"settings": {"port": 9000}},
        {"settings": {"api_keys": "open"}},
        {"apiKeys": {"values": {"alice": "of-alice"}, "existingSecret": "theirs"}},
    ],
    ids=["a typo", "an unknown kind", "half a core", "the chart's port", "keys in the open", "two sources of keys"],
)  # fmt: skip
def test_what_cannot_work_is_refused(values: dict[str, Any]) -> None:
    helm = pytest.importorskip("helm_python", reason="needs Helm: make test-chart")
    with pytest.raises(helm.HelmError):
        rendered(values)
