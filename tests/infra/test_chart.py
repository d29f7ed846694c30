"""The Helm chart: it renders, every manifest is valid, a typo is refused, and no pod may do more than it must."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import helm_python as helm
import jsonschema
import kubernetes_validate
import pytest

HERE = Path(__file__).parent
CHART = HERE.parents[1] / "infra" / "charts" / "cloudseg"

# The oldest that the chart's annotation allows, the default of Terraform, and the newest that the validator knows.
KUBERNETES = ("1.29", "1.33", "1.37")

# Kinds that Kubernetes itself does not know, with schemas of our own; every other one must be known to it.
OWN_SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (HERE / "schemas").glob("*.json")}
EXPECTED_GROUPS = {
    "v1",
    "apps/v1",
    "batch/v1",
    "networking.k8s.io/v1",
    "policy/v1",
    "keda.sh/v1alpha1",
    "monitoring.coreos.com/v1",
}


def check(manifest, *, version):
    """Raise unless a manifest is valid to the letter; a kind that nobody knows raises as well."""
    own = OWN_SCHEMAS.get(manifest["kind"].lower())
    if own is None:
        # The validator looks at the first word of a group only, and so would take policy.example.org for policy.
        assert manifest["apiVersion"] in EXPECTED_GROUPS
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    jsonschema.validate(manifest, own, cls=jsonschema.Draft202012Validator)
    if manifest["kind"] == "ScaledJob":
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "x"},
            "spec": manifest["spec"]["jobTargetRef"],
        }
        kubernetes_validate.validate(job, version, strict=True)


def lint(values):
    report = helm.lint(str(CHART), values, strict=True)
    # An icon is for catalogues of charts, and this one is in none.
    return [m for m in report["messages"] if m["severity"] >= 2] + report["errors"]


def test_the_chart_lints(example, example_values):
    assert lint(example_values(example)) == []


def test_lint_finds_a_template_that_breaks(tmp_path, example_values):
    chart = tmp_path / "cloudseg"
    for path in CHART.rglob("*"):
        if path.is_file():
            (chart / path.relative_to(CHART)).parent.mkdir(parents=True, exist_ok=True)
            (chart / path.relative_to(CHART)).write_text(path.read_text())
    (chart / "templates" / "broken.yaml").write_text('a: {{ include "cloudseg.nothing" . }}\n')
    report = helm.lint(str(chart), example_values("minimal"), strict=True)
    assert any("cloudseg.nothing" in json.dumps(found) for found in (report["messages"], report["errors"]))


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_manifest_is_valid_to_the_letter(manifests, version):
    assert len(manifests) >= 3
    for manifest in manifests:
        check(manifest, version=version)


def test_the_example_with_everything_has_every_kind_that_the_chart_knows(rendered):
    assert {m["kind"] for m in rendered("everything")} == {
        "ConfigMap",
        "Deployment",
        "Ingress",
        "Job",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "PodMonitor",
        "PrometheusRule",
        "ScaledJob",
        "Service",
        "ServiceAccount",
        "TriggerAuthentication",
    }


def of_kind(manifests, kind):
    (found, *_) = [copy.deepcopy(m) for m in manifests if m["kind"] == kind]
    return found


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "replica"), 2),
        ("Deployment", ("spec", "template", "spec", "containers", 0, "ressources"), {}),
        ("Job", ("spec", "backofLimit"), 3),
        ("NetworkPolicy", ("spec", "policyType"), []),
        ("ScaledJob", ("spec", "maxReplicas"), 3),
        ("ScaledJob", ("spec", "triggers", 0, "metadata", "queueLength"), 5),
        ("ScaledJob", ("spec", "triggers", 0, "metadata", "queueUrl"), "x"),
        ("ScaledJob", ("spec", "jobTargetRef", "template", "spec", "toleration"), []),
        ("TriggerAuthentication", ("spec", "podIdentity", "provider"), "amazon"),
        ("TriggerAuthentication", ("spec", "podIdentity", "roleArn"), "arn:aws:iam::123456789012:role/x"),
        ("PodMonitor", ("spec", "podMetricsEndpoints", 0, "targetport"), 3),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "runbook"), "x"),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "for"), "15 minutes"),
    ],
)
def test_the_validators_find_a_slip_of_the_pen(rendered, kind, path, value):
    manifest = of_kind(rendered("everything"), kind)
    check(manifest, version=KUBERNETES[1])
    *parents, last = path
    place = manifest
    for key in parents:
        place = place[key]
    place[last] = value
    with pytest.raises((kubernetes_validate.ValidationError, jsonschema.ValidationError)):
        check(manifest, version=KUBERNETES[1])


@pytest.mark.parametrize(
    ("kind", "api"), [("Deployment", "apps/v1beta1"), ("CronJob", "batch/v1beta1"), ("Widget", "v1")]
)
def test_a_kind_that_nobody_knows_fails(kind, api):
    with pytest.raises((kubernetes_validate.SchemaNotFoundError, AssertionError)):
        check({"apiVersion": api, "kind": kind, "metadata": {"name": "x"}}, version=KUBERNETES[2])


def without(values, *path):
    values = copy.deepcopy(values)
    place = values
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return values


def changed(values, path, value):
    values = copy.deepcopy(values)
    place = values
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (("pool",), {}, "pool"),
        (("pools", "cpu", "maxJob"), 3, "maxJob"),
        (("pools", "cpu", "processes"), 0, "processes"),
        (("pools", "cpu", "queueUrl"), "http://queue", "queueUrl"),
        (("pools", "fast"), {"enabled": True}, "fast"),
        (("image", "tag"), "latest", "tag"),
        (("image", "cpuDigest"), "sha256:12", "cpuDigest"),
        (("aws", "identity"), "keys", "identity"),
        (("serviceAccounts", "workers"), {}, "workers"),
        (("coordinator", "runs"), [], "runs"),
        (("coordinator", "name"), "Run 1", "name"),
        (("server", "roots"), ["run"], "roots"),
        (("server", "ingress", "host"), "", "host"),
        (("alarms", "errorRatio"), 5, "errorRatio"),
        (("networkPolicies", "enabled"), "yes", "enabled"),
    ],
)
def test_a_wrong_value_is_refused_by_name(render_chart, example_values, path, value, match):
    with pytest.raises(helm.HelmError, match=match):
        render_chart(changed(example_values("everything"), path, value))


@pytest.mark.parametrize(
    ("path", "match"),
    [
        (("image", "repository"), "image.repository"),
        (("aws", "region"), "aws.region"),
        (("pools", "cpu", "queueUrl"), "pools.cpu.queueUrl"),
        (("alarms", "runbookBase"), "alarms.runbookBase"),
    ],
)
def test_a_value_that_only_the_user_knows_is_asked_for(render_chart, example_values, path, match):
    with pytest.raises(helm.HelmError, match=match):
        render_chart(without(example_values("everything"), *path))


@pytest.mark.parametrize(("pool", "match"), [("tpu", "there is no pool"), ("gpu", "is not enabled")])
def test_a_run_that_nobody_would_work_on_is_refused(render_chart, example_values, pool, match):
    values = changed(example_values("minimal"), ("coordinator",), example_values("everything")["coordinator"])
    values["coordinator"]["runs"][0]["pool"] = pool
    with pytest.raises(helm.HelmError, match=match):
        render_chart(values)


def test_every_key_of_the_values_is_described(default_values):
    schema = json.loads((CHART / "values.schema.json").read_text())

    def walk(schema, value, where):
        assert schema.get("description") or where == "", f"{where} has no description"
        if isinstance(value, dict):
            assert schema.get("additionalProperties") is not None, f"{where} takes any key"
            for key, inner in value.items():
                known = schema.get("properties", {}).get(key, schema["additionalProperties"])
                if isinstance(known, dict) and "description" in known:
                    walk(known, inner, f"{where}.{key}")

    walk(schema, default_values, "")


def test_pods_are_restricted(manifests, pod_specs):
    specs = [spec for manifest in manifests for spec in pod_specs(manifest)]
    assert specs
    for spec in specs:
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert all(set(volume) & {"emptyDir", "configMap", "projected"} for volume in spec["volumes"])
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["requests"])
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


def test_no_manifest_holds_a_secret(manifests):
    text = json.dumps(manifests)
    assert not [m for m in manifests if m["kind"] == "Secret"]
    for word in (
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "secretKeyRef",
    ):
        assert word not in text


def test_images_are_pinned(manifests, pod_specs):
    for manifest in manifests:
        for spec in pod_specs(manifest):
            for container in [*spec["containers"], *spec.get("initContainers", [])]:
                name, _, tag = container["image"].rpartition(":")
                assert name
                assert tag not in ("", "latest")


def test_a_digest_wins_over_a_tag(rendered, pod_specs):
    (cpu,) = [m for m in rendered("gcp") if m["metadata"]["name"] == "seg-cpu"]
    (spec,) = pod_specs(cpu)
    assert spec["containers"][0]["image"].endswith("/cloudseg@sha256:" + "0" * 63 + "1")


def matching(selector, labels):
    return all(labels.get(key) == value for key, value in selector["matchLabels"].items())


def pod_labels(manifests):
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "Job"):
            yield manifest["metadata"]["name"], manifest["spec"]["template"]["metadata"]["labels"]
        if manifest["kind"] == "ScaledJob":
            yield (
                manifest["metadata"]["name"],
                manifest["spec"]["jobTargetRef"]["template"]["metadata"]["labels"],
            )


def test_selectors_select(rendered):
    """A policy, a service or a monitor that selects nobody does nothing, and nobody notices."""
    manifests = rendered("everything")
    pods = dict(pod_labels(manifests))
    found = {}
    for manifest in manifests:
        spec = manifest.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector")
        if manifest["kind"] == "Service":
            selector = {"matchLabels": spec["selector"]}
        if selector:
            found[manifest["kind"], manifest["metadata"]["name"]] = {
                name for name, labels in pods.items() if matching(selector, labels)
            }
    server, workers = {"seg-server"}, {"seg-cpu", "seg-gpu"}
    assert found == {
        ("Deployment", "seg-server"): server,
        ("Service", "seg-server"): server,
        ("PodDisruptionBudget", "seg-server"): server,
        ("NetworkPolicy", "seg-server"): server,
        ("NetworkPolicy", "seg-coordinator"): {"seg-one"},
        ("NetworkPolicy", "seg-worker"): workers,
        ("PodMonitor", "seg-worker"): workers,
    }


def test_every_pod_has_its_own_account_and_a_policy(manifests, pod_specs, example):
    accounts = {m["metadata"]["name"] for m in manifests if m["kind"] == "ServiceAccount"}
    used = {spec["serviceAccountName"] for manifest in manifests for spec in pod_specs(manifest)}
    assert used == accounts
    policies = [m["spec"]["podSelector"] for m in manifests if m["kind"] == "NetworkPolicy"]
    if example != "minimal":
        assert all(
            any(matching(policy, labels) for policy in policies) for _, labels in pod_labels(manifests)
        )


def test_roles_reach_pods_by_annotation_on_eks_and_by_token_elsewhere(rendered, pod_specs):
    def worker(example):
        (account,) = [
            m
            for m in rendered(example)
            if m["metadata"]["name"] == "seg-worker" and m["kind"] == "ServiceAccount"
        ]
        (job,) = [m for m in rendered(example) if m["metadata"]["name"] == "seg-cpu"]
        (spec,) = pod_specs(job)
        environment = {x["name"]: x["value"] for x in spec["containers"][0]["env"]}
        return account["metadata"]["annotations"] or {}, environment, [v["name"] for v in spec["volumes"]]

    annotations, environment, volumes = worker("aws")
    assert annotations == {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/cloudseg-worker"}
    assert "AWS_ROLE_ARN" not in environment
    assert volumes == ["tmp"]

    annotations, environment, volumes = worker("gcp")
    assert annotations == {
        "iam.gke.io/gcp-service-account": "cloudseg-worker@project.iam.gserviceaccount.com"
    }
    assert environment["AWS_ROLE_ARN"] == "arn:aws:iam::123456789012:role/cloudseg-worker"
    assert volumes == ["tmp", "aws-token"]


def test_only_the_gpu_pool_asks_for_gpus_and_puts_up_with_their_nodes(rendered):
    for job in (m for m in rendered("aws") if m["kind"] == "ScaledJob"):
        spec = job["spec"]["jobTargetRef"]["template"]["spec"]
        is_gpu = job["metadata"]["labels"]["cloudseg/pool"] == "gpu"
        (container,) = spec["containers"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) is is_gpu
        assert container["image"].endswith("-gpu" if is_gpu else "-cpu")
        assert any(t["key"] == "nvidia.com/gpu" for t in spec["tolerations"]) is is_gpu
        assert spec["nodeSelector"] == {"cloudseg/pool": "gpu" if is_gpu else "cpu"}


def test_a_server_of_one_pod_has_no_disruption_budget(render_chart, example_values):
    """It would hold up every drain of its node, for ever."""
    values = changed(example_values("everything"), ("server", "replicas"), 1)
    assert not [m for m in render_chart(values) if m["kind"] == "PodDisruptionBudget"]
