"""The manifests: valid by Kubernetes' own schemas, consistent among themselves, and true to what the code does."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tokentape import Settings
from tokentape.queue import QueueKeys
from tokentape_worker.route import Route

from .conftest import ROOT

FOLDER = ROOT / "deploy/kubernetes"
MANIFESTS = sorted(path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml")
#: Kinds that are not Kubernetes' own.
FOREIGN = {"ScaledObject", "TriggerAuthentication"}


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for path in MANIFESTS for document in documents(path) if document["kind"] == kind]


@pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None, reason="its schemas need script/setup --deploy"
)
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_manifests_are_valid_by_the_schemas_of_kubernetes(path: Path) -> None:
    kubernetes_validate = importlib.import_module("kubernetes_validate")  # has no types

    for document in documents(path):
        if document["kind"] not in FOREIGN:
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def kustomizations() -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in FOLDER.rglob("kustomization.yaml"):
        yield path.parent, yaml.safe_load(path.read_text())


def test_what_the_kustomizations_name_is_there() -> None:
    for folder, loaded in kustomizations():
        for name in (*loaded.get("resources", []), *loaded.get("components", [])):
            assert (folder / name).exists(), name
        for generator in loaded.get("configMapGenerator", []):
            assert all((folder / file).exists() for file in generator["files"])
        for component in loaded.get("components", []):
            assert yaml.safe_load((folder / component / "kustomization.yaml").read_text())["kind"] == "Component"


def test_every_manifest_belongs_to_a_kustomization() -> None:
    named = {folder / name for folder, loaded in kustomizations() for name in loaded["resources"]}
    assert named == set(MANIFESTS)


def test_the_version_of_the_image_is_the_projects() -> None:
    from tokentape import __version__  # noqa: PLC0415

    (base,) = [loaded for folder, loaded in kustomizations() if folder == FOLDER]
    assert [image["newTag"] for image in base["images"]] == [__version__]


def test_the_worker_is_given_settings_that_it_takes(tmp_path: Path) -> None:
    (deployment,) = of_kind("Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    # In the container these are mounted; here they are files of the test.
    for mount in ("redis", "upstreams"):
        (tmp_path / mount).mkdir()
    (tmp_path / "redis/tokentape-worker").write_text("a-secret")
    (tmp_path / "upstreams/openai").write_text("a-key")
    toml = (FOLDER / "tokentape.toml").read_text().replace(mounts["upstreams"], str(tmp_path / "upstreams"))
    (tmp_path / "tokentape.toml").write_text(toml)
    environment["TOKENTAPE_REDIS_PASSWORD_FILE"] = environment["TOKENTAPE_REDIS_PASSWORD_FILE"].replace(
        mounts["redis"], str(tmp_path / "redis")
    )
    assert environment["TOKENTAPE_CONFIG"] == f"{mounts['settings']}/tokentape.toml"
    environment["TOKENTAPE_CONFIG"] = str(tmp_path / "tokentape.toml")

    settings = Settings.load(environment)

    assert settings.redis_url == "redis://tokentape-worker:a-secret@valkey:6379/0"
    assert [Route(name, upstream).unusable for name, upstream in settings.upstreams.items()] == [None]
    assert settings.retention_s == Settings().retention_s
    assert "TOKENTAPE_RETENTION_S" in environment  # to be found by who runs short of memory
    assert pod["terminationGracePeriodSeconds"] >= settings.grace_s + settings.lease_s + 5
    assert str(settings.health_file).startswith(mounts["tmp"])


def test_probes_of_the_worker_are_the_health_module() -> None:
    (deployment,) = of_kind("Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    asked = {
        probe: container[probe]["exec"]["command"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    health = ["python", "-P", "-m", "tokentape_worker.health"]
    assert asked == {
        "startupProbe": [*health, "live"],
        "livenessProbe": [*health, "live"],
        "readinessProbe": [*health, "ready"],
    }


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
def test_pods_meet_the_restricted_standard(kind: str) -> None:
    (workload,) = of_kind(kind)
    pod = workload["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    labels = workload["spec"]["template"]["metadata"]["labels"].items()
    assert workload["spec"]["selector"]["matchLabels"].items() <= labels


def test_the_server_is_one_that_keeps_everything() -> None:
    (server,) = of_kind("StatefulSet")
    (container,) = server["spec"]["template"]["spec"]["containers"]
    words = " ".join(container["command"])
    for option in ("--appendonly yes", "--maxmemory-policy noeviction", "--aclfile /run/secrets/acl/users.acl"):
        assert option in words


def passes(probe: str, cli: str, folder: Path) -> bool:
    """What a probe of the server says where `valkey-cli` is this script."""
    (server,) = of_kind("StatefulSet")
    (container,) = server["spec"]["template"]["spec"]["containers"]
    (mount,) = [one["mountPath"] for one in container["volumeMounts"] if one["name"] == "acl"]
    program, *arguments = container[probe]["exec"]["command"]
    (folder / "tokentape-health").write_text("a-password\n")
    (folder / "valkey-cli").write_text(f"#!/bin/sh\n{cli}\n")
    (folder / "valkey-cli").chmod(0o755)
    command = [program, *(argument.replace(mount, str(folder)) for argument in arguments)]
    environment = {"PATH": f"{folder}:/usr/bin:/bin"}
    return subprocess.run(command, env=environment, check=False, timeout=30).returncode == 0


def test_the_server_is_there_once_it_has_loaded_what_it_kept(tmp_path: Path) -> None:
    ready = """[ "$REDISCLI_AUTH $*" = "a-password --user tokentape-health ping" ] && echo PONG"""
    assert passes("startupProbe", ready, tmp_path)
    for answer in ("LOADING Valkey is loading the dataset in memory", "NOAUTH Authentication required."):
        assert not passes("startupProbe", f"echo {answer}", tmp_path)
    # Before it has passed, Kubernetes asks neither of these.
    for probe in ("livenessProbe", "readinessProbe"):
        assert passes(probe, "echo NOAUTH Authentication required.", tmp_path)
        assert not passes(probe, "echo Could not connect to Valkey; exit 1", tmp_path)


def test_what_the_servers_pod_reads_of_the_secret_is_what_the_docs_put_there() -> None:
    (server,) = of_kind("StatefulSet")
    (secret,) = [one["secret"] for one in server["spec"]["template"]["spec"]["volumes"] if "secret" in one]
    page = (ROOT / "docs/deployment.md").read_text()
    (made,) = re.findall(r"^for user in (.*); do$", page, re.MULTILINE)
    users = re.findall(r"^user (\S+)", (ROOT / "deploy/redis/users.acl").read_text(), re.MULTILINE)
    assert sorted(made.split()) == sorted(users)
    assert f"secret generic {secret['secretName']} --from-file=users.acl --from-file=passwords\n" in page
    assert {item["key"] for item in secret["items"]} < {"users.acl", *users}


#: The fields that KEDA's types may have: apis/keda/v1alpha1 of github.com/kedacore/keda, at 2.16.
KEDAS_FIELDS = {
    "ScaledObject.spec": {
        "scaleTargetRef", "pollingInterval", "initialCooldownPeriod", "cooldownPeriod", "idleReplicaCount",
        "minReplicaCount", "maxReplicaCount", "advanced", "triggers", "fallback",
    },
    "ScaledObject.spec.scaleTargetRef": {"name", "apiVersion", "kind", "envSourceContainerName"},
    "ScaledObject.spec.advanced": {
        "horizontalPodAutoscalerConfig", "restoreToOriginalReplicaCount", "scalingModifiers",
    },
    "ScaledObject.spec.advanced.scalingModifiers": {"formula", "target", "activationTarget", "metricType"},
    "ScaledObject.spec.advanced.horizontalPodAutoscalerConfig": {"behavior", "name"},
    "ScaledObject.spec.triggers": {"type", "name", "useCachedMetrics", "metadata", "authenticationRef", "metricType"},
    "ScaledObject.spec.triggers.authenticationRef": {"name", "kind"},
    # What the scaler `redis` reads of it.
    "ScaledObject.spec.triggers.metadata": {
        "address", "addresses", "username", "password", "host", "hosts", "port", "ports", "unsafeSsl", "listLength",
        "activationListLength", "listName", "databaseIndex", "enableTLS", "usernameFromEnv", "passwordFromEnv",
    },
    "TriggerAuthentication.spec": {"podIdentity", "secretTargetRef", "configMapTargetRef", "env"},
    "TriggerAuthentication.spec.secretTargetRef": {"parameter", "name", "key"},
    "TriggerAuthentication.spec.configMapTargetRef": {"parameter", "name", "key"},
}  # fmt: skip


def unknown(path: str, value: Any) -> list[str]:
    """The fields that KEDA does not have. Where nothing is listed, it is somebody else's type."""
    if isinstance(value, list):
        return [name for item in value for name in unknown(path, item)]
    if not isinstance(value, dict) or path not in KEDAS_FIELDS:
        return []
    wrong = [f"{path}.{name}" for name in value.keys() - KEDAS_FIELDS[path]]
    return wrong + [deeper for name, item in value.items() for deeper in unknown(f"{path}.{name}", item)]


@pytest.mark.parametrize("kind", sorted(FOREIGN))
def test_keda_knows_every_field(kind: str) -> None:
    (document,) = of_kind(kind)
    assert document["apiVersion"] == "keda.sh/v1alpha1"
    assert unknown(f"{kind}.spec", document["spec"]) == []
    document["spec"]["minReplicas"] = 1
    assert unknown(f"{kind}.spec", document["spec"]) == [f"{kind}.spec.minReplicas"]


def test_keda_counts_all_that_waits_in_queues_and_all_that_runs() -> None:
    (scaled,) = of_kind("ScaledObject")
    (deployment,) = of_kind("Deployment")
    keys = QueueKeys("tokentape")
    triggers = {trigger["name"]: trigger for trigger in scaled["spec"]["triggers"]}
    assert {trigger["metadata"]["listName"] for trigger in triggers.values()} == {
        *keys.queues,
        *keys.all_suspects,
        keys.owners,
    }
    modifiers = scaled["spec"]["advanced"]["scalingModifiers"]
    assert set(re.split(r" \+ ", modifiers["formula"])) == set(triggers)
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (streams,) = [int(one["value"]) for one in container["env"] if one["name"] == "TOKENTAPE_CONCURRENCY"]
    assert int(modifiers["target"]) == streams * 3 // 4
    assert scaled["spec"]["minReplicaCount"] == deployment["spec"]["replicas"]
    (login,) = of_kind("TriggerAuthentication")
    (namespace,) = of_kind("Namespace")
    (service,) = of_kind("Service")
    (port,) = [port["port"] for port in service["spec"]["ports"]]
    server = f"{service['metadata']['name']}.{namespace['metadata']['name']}.svc:{port}"
    for trigger in triggers.values():
        assert trigger["metadata"]["address"] == server
        assert trigger["authenticationRef"]["name"] == login["metadata"]["name"]
    users = re.findall(r"^user (\S+)", (ROOT / "deploy/redis/users.acl").read_text(), re.MULTILINE)
    assert {entry["key"] for entry in login["spec"]["secretTargetRef"]} < set(users)
    (scaler,) = of_kind("ConfigMap")
    assert scaler["data"]["username"] in users
