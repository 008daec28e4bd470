"""The chart as Helm renders it: for its defaults, for every example, and for what it must refuse."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

from cli.commands.cache import preprocess
from cli.main import app
from helm import generate
from helm.values_workloads import Dataset, DatasetSource
from k8s.cluster import VERBS
from k8s.worker_jobs import Template
from tests.harness.programs import program

CHART = generate.CHART
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
MINORS = [f"1.{minor}" for minor in range(29, 38)]
SECRETS = {
    "auth.adminToken": "S3cret-admin",
    "auth.workerToken": "S3cret-worker",
    "auth.readToken": "S3cret-read",
    "postgresql.auth.password": "S3cret-password",
    "postgresql.auth.dashboardPassword": "S3cret-dashboard",
}
OF_KUBERNETES = {
    "v1",
    "apps",
    "batch",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
}
"""Groups that every cluster has; the others are of operators."""

EVERYTHING = {
    "artifacts.enabled": "true",
    "coordinator.replicas": "2",
    "coordinator.tokenReview.enabled": "true",
    "httpRoute.enabled": "true",
    "httpRoute.parentRefs[0].name": "gateway",
    "httpRoute.dashboardHostnames[0]": "optuna.example.org",
    "ingress.enabled": "true",
    "ingress.host": "foldwise.example.org",
    "ingress.dashboardHost": "optuna.example.org",
    "monitoring.prometheusRule.enabled": "true",
    "monitoring.serviceMonitor.enabled": "true",
    "preprocessing.datasets[0].name": "faces",
    "preprocessing.datasets[0].dataset": "ckplus",
    "preprocessing.datasets[0].source.existingClaim": "datasets",
    "worker.deployment.enabled": "true",
    "worker.deployment.keda.enabled": "true",
    "worker.kueue.minParallelism": "1",
    "worker.kueue.queueName": "team",
}

Manifest = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("helm"), *arguments], capture_output=True, text=True, check=False)


def rendered(values: Sequence[Path] = (), **settings: str) -> subprocess.CompletedProcess[str]:
    files = [argument for path in values for argument in ("--values", str(path))]
    given = [argument for key, value in settings.items() for argument in ("--set", f"{key}={value}")]
    return helm("template", "r", str(CHART), "--namespace", "search", *files, *given)


@cache
def manifests(values: tuple[Path, ...] = (), settings: tuple[tuple[str, str], ...] = ()) -> list[Manifest]:
    made = rendered(values, **SECRETS, **dict(settings))
    assert made.returncode == 0, made.stderr
    return [document for document in yaml.safe_load_all(made.stdout) if document]


VARIANTS = {
    "defaults": ((), ()),
    "everything": ((), tuple(EVERYTHING.items())),
    **{path.stem: ((path,), ()) for path in EXAMPLES},
}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> list[Manifest]:
    return manifests(*VARIANTS[request.param])


def worker_job(made: list[Manifest]) -> Manifest:
    job: Manifest = yaml.safe_load(named(made, "ConfigMap", "r-foldwise-worker")["data"]["job.yaml"])
    return job


def named(made: list[Manifest], kind: str, name: str) -> Manifest:
    return next(item for item in made if item["kind"] == kind and item["metadata"]["name"] == name)


def of_kind(made: list[Manifest], *kinds: str) -> list[Manifest]:
    return [item for item in made if item["kind"] in kinds]


def pods(made: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod of the chart with its name, those of the workers' Jobs too."""
    templates = [item for item in made if item.get("spec", {}).get("template")]
    if any(item["kind"] == "ConfigMap" for item in made):
        job = worker_job(made)
        templates.append({**job, "metadata": {**job["metadata"], "name": "worker-job"}})
    for item in templates:
        yield f"{item['kind']}/{item['metadata']['name']}", item["spec"]["template"]
    for item in of_kind(made, "Pod"):
        yield f"Pod/{item['metadata']['name']}", item


def test_a_dataset_s_defaults_are_those_of_the_schema() -> None:
    """The templates apply them: Helm does not read a schema's defaults."""
    dataset = {"name": "faces", "dataset": "ckplus", "source.existingClaim": "claim"}
    made = manifests(settings=tuple((f"preprocessing.datasets[0].{key}", it) for key, it in dataset.items()))
    (job,) = [job for job in of_kind(made, "Job") if "foldwise/dataset" in job["metadata"]["labels"]]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    fields = {name: field.default for name, field in Dataset.model_fields.items() if not field.is_required()}
    assert fields.keys() == {"frames", "frameSampling", "windows", "frameSize", "detector"}
    assert {
        f"--frames={fields['frames']}",
        f"--frame-size={fields['frameSize']}",
        f"--detector={fields['detector']}",
    } <= set(container["args"])
    # Without an argument the command's own default holds, so that earlier Jobs keep their names.
    assert not [argument for argument in container["args"] if "sampling" in argument or "windows" in argument]
    options = signature(preprocess).parameters
    assert (options["frame_sampling"].default, options["windows"].default) == (
        fields["frameSampling"],
        fields["windows"],
    )
    (data,) = [mount for mount in container["volumeMounts"] if mount["name"] == "data"]
    assert "subPath" not in data
    assert DatasetSource.model_fields["subPath"].default == ""


@pytest.mark.parametrize("values", [None, *EXAMPLES], ids=lambda path: path.stem if path else "defaults")
def test_lint(values: Path | None) -> None:
    linted = helm("lint", str(CHART), "--strict", *(("--values", str(values)) if values else ()))
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"coordinator.replicaz": "2"}, "coordinator: Additional property replicaz is not allowed"),
        ({"coordinator.replicas": "-1"}, "coordinator.replicas: Must be greater than or equal to 1"),
        ({"coordinator.replicas": "3"}, "coordinator.replicas: Must be less than or equal to 2"),
        ({"worker.parallelism": "many"}, "worker.parallelism: Invalid type. Expected: integer, given: string"),
        ({"cache.size": "big"}, "cache.size: Does not match pattern"),
        ({"worker.image.digest": "sha256:12"}, "worker.image.digest: Does not match pattern"),
        (
            {"cache.accessModes[0]": "ReadWriteOnce"},
            "set cache.singleNode=true to keep all of them on one node",
        ),
        (
            {"artifacts.enabled": "true", "artifacts.accessModes[0]": "ReadWriteOncePod"},
            "artifacts.accessModes is [ReadWriteOncePod]",
        ),
        ({"postgresql.enabled": "false"}, "set externalDatabase.existingSecret to the name of a Secret"),
        (
            {"externalDatabase.existingSecret": "db"},
            "set postgresql.enabled=false to use the external database",
        ),
        ({"worker.deployment.keda.enabled": "true"}, "set worker.deployment.enabled=true"),
        ({"worker.kueue.minParallelism": "1"}, "partial admission needs a queue; set worker.kueue.queueName"),
        (
            {"worker.deployment.keda.minReplicas": "5"},
            "worker.deployment.keda.minReplicas is 5 and worker.deployment.keda.maxReplicas is 4",
        ),
        (
            {"dashboard.enabled": "false", "ingress.dashboardHost": "optuna.example.org"},
            "dashboard.enabled is false, but ingress.dashboardHost",
        ),
        ({"ingress.enabled": "true"}, "set ingress.host to the host name of the coordinator"),
        ({"httpRoute.enabled": "true"}, "list at least one Gateway"),
        ({"auth.adminToken": ""}, "set auth.existingSecret to the name of a Secret, or set auth.adminToken"),
        ({"cache.singleNode": "true", "coordinator.replicas": "2"}, "set coordinator.replicas=1"),
        (
            {
                f"preprocessing.datasets[{place}].{key}": value
                for place in (0, 1)
                for key, value in (("name", "a"), ("dataset", "ckplus"), ("source.existingClaim", "c"))
            },
            'preprocessing.datasets lists the name "a" twice',
        ),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(settings: dict[str, str], sentence: str) -> None:
    made = rendered((), **(SECRETS | settings))
    assert made.returncode != 0
    assert sentence in made.stderr


def test_one_node_volumes_do_on_one_node() -> None:
    made = manifests((), (("cache.accessModes[0]", "ReadWriteOnce"), ("cache.singleNode", "true")))
    job = worker_job(made)
    (term,) = job["spec"]["template"]["spec"]["affinity"]["podAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    coordinator = named(made, "Deployment", "r-foldwise")["spec"]["template"]["metadata"]["labels"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"].items() <= coordinator.items()


@pytest.mark.parametrize(
    "minor",
    # The oldest, one between and the newest; the others in long runs.
    [minor if n % 4 == 0 else pytest.param(minor, marks=pytest.mark.long) for n, minor in enumerate(MINORS)],
)
def test_objects_are_valid_in_every_supported_version(minor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # It reads a megabyte of definitions for every object.
    schemas = cache(kubernetes_validate.utils.schema_contents)
    monkeypatch.setattr(kubernetes_validate.utils, "schema_contents", schemas)
    seen = {}
    for values, settings in VARIANTS.values():
        made = manifests(values, settings)
        for item in [*made, worker_job(made)]:
            if item["apiVersion"].partition("/")[0] in OF_KUBERNETES:
                seen[yaml.safe_dump(item)] = item
    assert len({item["kind"] for item in seen.values()}) >= 12
    for item in seen.values():
        kubernetes_validate.validate(item, minor, strict=True)


def test_a_wrong_field_would_be_found() -> None:
    job = worker_job(manifests())
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job | {"spec": job["spec"] | {"paralelism": 1}}, MINORS[-1], strict=True)


def test_pods_hold_the_restricted_profile(variant: list[Manifest]) -> None:
    for name, pod in pods(variant):
        spec = pod["spec"]
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        allowed = {"configMap", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
        for volume in spec.get("volumes", []):
            assert volume.keys() - {"name"} <= allowed, name
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert own["readOnlyRootFilesystem"] is True, name
            assert "privileged" not in own, name
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}, name
            assert "memory" in container["resources"]["limits"], name
            assert "cpu" not in container["resources"]["limits"], name


def test_only_the_coordinator_may_ask_the_api_server(variant: list[Manifest]) -> None:
    asking = [name for name, pod in pods(variant) if pod["spec"]["automountServiceAccountToken"]]
    assert asking == ["Deployment/r-foldwise"]


def test_every_granted_verb_is_used_and_every_used_verb_granted() -> None:
    (role,) = of_kind(manifests(settings=(("worker.kueue.queueName", "team"),)), "Role")
    granted = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == VERBS
    (plain,) = of_kind(manifests(), "Role")
    assert not any("kueue.x-k8s.io" in rule["apiGroups"] for rule in plain["rules"])


def test_tokenreviews_only_when_chosen() -> None:
    assert not of_kind(manifests(), "ClusterRole")
    (role,) = of_kind(manifests(settings=(("coordinator.tokenReview.enabled", "true"),)), "ClusterRole")
    assert role["rules"] == [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
    ]
    made = manifests(settings=(("worker.jobs", "false"),))
    assert not of_kind(made, "Role", "ClusterRole")
    assert [name for name, pod in pods(made) if pod["spec"]["automountServiceAccountToken"]] == []


def test_no_secret_in_arguments_or_environment(variant: list[Manifest]) -> None:
    for item in variant:
        if item["kind"] != "Secret":
            assert "S3cret" not in yaml.safe_dump(item)
    for name, pod in pods(variant):
        for container in pod["spec"]["containers"]:
            for entry in container.get("env", []):
                assert "secretKeyRef" not in entry.get("valueFrom", {}), name
            assert not container.get("envFrom"), name


def test_secrets_and_volumes_outlive_the_release() -> None:
    made = manifests(settings=(("artifacts.enabled", "true"),))
    kept = of_kind(made, "Secret", "PersistentVolumeClaim")
    assert len(kept) == 4
    for item in kept:
        assert item["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_every_pod_is_fenced_in(variant: list[Manifest]) -> None:
    policies = of_kind(variant, "NetworkPolicy")
    (deny,) = [p for p in policies if not {"ingress", "egress"} & p["spec"].keys()]
    assert set(deny["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    for name, pod in pods(variant):
        labels = pod["metadata"]["labels"].items()
        chosen = [p for p in policies if p["spec"]["podSelector"]["matchLabels"].items() <= labels]
        assert deny in chosen, name
        assert len(chosen) == 2, name


def test_workers_reach_the_coordinator_and_nothing_else() -> None:
    made = manifests()
    policy = named(made, "NetworkPolicy", "r-foldwise-worker")["spec"]
    dns, coordinator = policy["egress"]
    assert policy["ingress"] == []
    assert {port["port"] for port in dns["ports"]} == {53}
    (peer,) = coordinator["to"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "coordinator"
    database = named(made, "NetworkPolicy", "r-foldwise-postgresql")["spec"]["ingress"][0]["from"]
    allowed = {peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in database}
    assert allowed == {"coordinator", "dashboard", "migration"}


def test_labels_that_select_never_carry_a_version(variant: list[Manifest]) -> None:
    for item in of_kind(variant, "Deployment", "StatefulSet"):
        selector = item["spec"]["selector"]["matchLabels"]
        assert not {"app.kubernetes.io/version", "helm.sh/chart"} & selector.keys()
        assert selector.items() <= item["spec"]["template"]["metadata"]["labels"].items()
    for name, pod in pods(variant):
        if name.startswith("Job"):
            assert not {"app.kubernetes.io/version", "helm.sh/chart"} & pod["metadata"]["labels"].keys()


def test_no_pod_of_a_hook_that_went_well_outlives_it() -> None:
    """Helm does not delete hooks when it uninstalls a release."""
    outside = (("postgresql.enabled", "false"), ("externalDatabase.existingSecret", "db"))
    hooks = [
        made["metadata"]["annotations"]
        for made in manifests(settings=outside)
        if "helm.sh/hook" in made["metadata"].get("annotations", {})
    ]
    assert len(hooks) >= 2
    assert all("hook-succeeded" in hook["helm.sh/hook-delete-policy"] for hook in hooks)


def test_migration_is_a_hook_only_before_a_database_that_is_there_already() -> None:
    bundled = next(job for job in of_kind(manifests(), "Job") if "migrate" in job["metadata"]["name"])
    assert bundled["metadata"]["name"] == "r-foldwise-migrate-1"
    assert "annotations" not in bundled["metadata"]
    outside = (("postgresql.enabled", "false"), ("externalDatabase.existingSecret", "db"))
    (hook,) = of_kind(manifests(settings=outside), "Job")
    assert hook["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    # What a hook needs must be there before the release is: no service account, Secret or volume of ours.
    spec = hook["spec"]["template"]["spec"]
    assert "serviceAccountName" not in spec
    assert [volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume] == ["db"]


def test_a_study_s_job_is_a_queue_of_work_that_knows_our_exit_codes() -> None:
    spec = worker_job(manifests())["spec"]
    assert "completions" not in spec
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    disrupted, again, elsewhere, permanent = spec["podFailurePolicy"]["rules"]
    assert (disrupted["action"], disrupted["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert (again["action"], again["onExitCodes"]["values"]) == ("Ignore", [75])
    assert (elsewhere["action"], elsewhere["onExitCodes"]["values"]) == ("Ignore", [69])
    assert (permanent["action"], permanent["onExitCodes"]["values"]) == ("FailJob", [2, 64])


def test_jobs_and_their_pods_are_found_by_one_selector(variant: list[Manifest]) -> None:
    job = worker_job(variant)
    config_map = named(variant, "ConfigMap", "r-foldwise-worker")
    template = Template.of({**config_map, "metadata": {**config_map["metadata"], "uid": "u"}})
    wanted = dict(pair.split("=") for pair in template.selector.split(","))
    assert {"app.kubernetes.io/instance", "app.kubernetes.io/component"} <= wanted.keys()
    for labels in (job["metadata"]["labels"], job["spec"]["template"]["metadata"]["labels"]):
        assert wanted.items() <= labels.items()
    deployments = [d for d in of_kind(variant, "Deployment") if d["metadata"]["name"] == "r-foldwise-worker"]
    for deployment in deployments:
        assert wanted.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_gpu_limits_are_a_free_map() -> None:
    by = (
        ("worker.resources.limits.nvidia\\.com/gpu", "null"),
        ("worker.resources.limits.nvidia\\.com/mig-1g\\.10gb", "1"),
        ("worker.resourceClaims[0].name", "gpu"),
    )
    spec = worker_job(manifests(settings=by))["spec"]["template"]["spec"]
    assert spec["containers"][0]["resources"]["limits"] == {"memory": "16Gi", "nvidia.com/mig-1g.10gb": 1}
    assert spec["resourceClaims"] == [{"name": "gpu"}]


NO_GPU = (r"worker.resources.limits.nvidia\.com/gpu", "null")


@pytest.mark.parametrize(
    ("settings", "required"),
    [
        ((), True),
        (((r"worker.resources.limits.nvidia\.com/gpu", "4"),), True),
        ((NO_GPU, (r"worker.resources.limits.nvidia\.com/mig-1g\.10gb", "1")), True),
        ((NO_GPU, (r"worker.resources.limits.nvidia\.com/gpu\.shared", "1")), True),
        ((NO_GPU, ("worker.resourceClaims[0].name", "gpu")), True),
        ((NO_GPU,), False),
        (((r"worker.resources.limits.nvidia\.com/gpu", "0"),), False),
        ((NO_GPU, (r"worker.resources.limits.example\.com/fast-network", "1")), False),
    ],
)
def test_a_worker_with_a_gpu_must_not_train_on_the_cpu(
    settings: tuple[tuple[str, str], ...], required: bool
) -> None:
    (container,) = worker_job(manifests(settings=settings))["spec"]["template"]["spec"]["containers"]
    told = [variable["value"] for variable in container["env"] if variable["name"] == "FOLDWISE_REQUIRE_GPU"]
    assert told == (["1"] if required else [])


def test_extra_environment_decides_whether_a_gpu_is_required() -> None:
    by = (("worker.extraEnv[0].name", "FOLDWISE_REQUIRE_GPU"), ("worker.extraEnv[0].value", "off"))
    (container,) = worker_job(manifests(settings=by))["spec"]["template"]["spec"]["containers"]
    told = [variable["value"] for variable in container["env"] if variable["name"] == "FOLDWISE_REQUIRE_GPU"]
    assert told == ["off"], "a name that is listed twice breaks later upgrades"


def test_windows_of_long_videos_reach_the_preprocessing_job() -> None:
    dataset = {
        "name": "faces",
        "dataset": "video-folder",
        "source.existingClaim": "data",
        "frameSampling": "middle",
        "windows": "3",
    }
    made = manifests(settings=tuple((f"preprocessing.datasets[0].{key}", it) for key, it in dataset.items()))
    (job,) = [job for job in of_kind(made, "Job") if "foldwise/dataset" in job["metadata"]["labels"]]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert {"--frame-sampling=middle", "--windows=3"} <= set(container["args"])


def test_other_settings_make_another_preprocessing_job() -> None:
    dataset = {
        "preprocessing.datasets[0].name": "faces",
        "preprocessing.datasets[0].dataset": "ckplus",
        "preprocessing.datasets[0].source.existingClaim": "data",
    }

    def name(**more: str) -> str:
        made = of_kind(manifests(settings=tuple((dataset | more).items())), "Job")
        return next(str(job["metadata"]["name"]) for job in made if "faces" in job["metadata"]["name"])

    assert name() == name(**{"coordinator.replicas": "2"})
    assert (
        len(
            {
                name(),
                name(**{"preprocessing.datasets[0].frames": "12"}),
                name(**{"preprocessing.image.tag": "v2"}),
            }
        )
        == 3
    )


def test_keda_s_workers_have_no_replicas_of_their_own() -> None:
    plain = manifests(settings=(("worker.deployment.enabled", "true"),))
    assert named(plain, "Deployment", "r-foldwise-worker")["spec"]["replicas"] == 1
    scaled = manifests(settings=tuple(EVERYTHING.items()))
    assert "replicas" not in named(scaled, "Deployment", "r-foldwise-worker")["spec"]
    (scaler,) = of_kind(scaled, "ScaledObject")
    assert scaler["spec"]["triggers"][0]["metadata"]["valueLocation"] == "foldwise_open_trials"


def test_metrics_in_alerts_exist() -> None:
    source = (CHART.parent.parent / "coordinator" / "metrics.py").read_text()
    (rule,) = of_kind(manifests(settings=tuple(EVERYTHING.items())), "PrometheusRule")
    for alert in rule["spec"]["groups"][0]["rules"]:
        metrics = set(re.findall(r"foldwise_\w+", alert["expr"]))
        assert metrics
        for metric in metrics:
            assert f'"{metric}"' in source, metric


def test_an_alert_that_somebody_must_act_on_fires_if_nothing_is_scraped() -> None:
    (rules,) = [m for m in manifests(settings=tuple(EVERYTHING.items())) if m["kind"] == "PrometheusRule"]
    critical = [
        rule for rule in rules["spec"]["groups"][0]["rules"] if rule["labels"]["severity"] == "critical"
    ]
    assert {rule["alert"] for rule in critical} == {"FoldwiseDatabaseDown", "FoldwiseNoLeader"}
    for rule in critical:
        assert " or absent(foldwise_" in rule["expr"]


def test_images_can_come_from_elsewhere_and_be_pinned() -> None:
    digest = "sha256:" + "a" * 64
    made = manifests(
        settings=(("global.imageRegistry", "registry.example.org/lab"), ("worker.image.digest", digest))
    )
    images = {c["image"] for _, pod in pods(made) for c in pod["spec"]["containers"]}
    assert all(image.startswith("registry.example.org/lab/") for image in images)
    (worker,) = worker_job(made)["spec"]["template"]["spec"]["containers"]
    assert worker["image"] == f"registry.example.org/lab/foldwise/worker@{digest}"
    # Kept with every result.
    assert {"name": "FOLDWISE_IMAGE_DIGEST", "value": digest} in worker["env"]


def test_arguments_and_environment_are_those_of_the_command_line(variant: list[Manifest]) -> None:
    # typer carries a click of its own.
    commands: Any = typer.main.get_command(app)
    known = set()
    for package in ("cli", "client", "services"):
        for path in (CHART.parent.parent / package).rglob("*.py"):
            known |= set(re.findall(r'"(FOLDWISE_[A-Z_]+)"', path.read_text()))
    known |= {"FOLDWISE_LOG", "FOLDWISE_IMAGE_DIGEST", "FOLDWISE_REVISION"}
    for name, pod in pods(variant):
        for container in pod["spec"]["containers"]:
            for entry in container["env"]:
                if entry["name"].startswith("FOLDWISE_"):
                    assert entry["name"] in known or entry["name"].removesuffix("_FILE") in known, name
            if "args" in container:
                command, *arguments = container["args"]
                found = commands.commands[command]
                # Options that the environment gives are not asked for.
                context = found.make_context(command, arguments, resilient_parsing=True)
                assert context.args == [], name


@pytest.mark.parametrize(
    ("settings", "folder"),
    [
        ((), "/tmp/cache"),  # noqa: S108 - a pod's own volume
        ((("worker.compileCache.hostPath.path", "/var/foldwise"),), "/compile-cache"),
    ],
)
def test_workers_keep_compiled_networks_in_their_own_folder_or_on_a_shared_volume(
    settings: tuple[tuple[str, str], ...], folder: str
) -> None:
    pod = worker_job(manifests(settings=settings))["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environment["TORCHINDUCTOR_CACHE_DIR"] == f"{folder}/inductor"
    assert environment["TRITON_CACHE_DIR"] == f"{folder}/triton"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    if settings:
        assert mounts["compile-cache"] == folder
        assert volumes["compile-cache"] == {"name": "compile-cache", "hostPath": {"path": "/var/foldwise"}}
    else:
        assert "compile-cache" not in mounts
        assert "compile-cache" not in volumes


def test_extra_objects_are_templates() -> None:
    made = manifests((CHART / "examples" / "kueue-team.yaml",))
    (queue,) = of_kind(made, "LocalQueue")
    assert queue["spec"]["clusterQueue"] == "search"


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, None),
        (
            {"ingress.enabled": "true", "ingress.host": "f.example", "ingress.dashboardHost": "o.example"},
            "http",
        ),
        (
            {
                "httpRoute.enabled": "true",
                "httpRoute.parentRefs[0].name": "gateway",
                "httpRoute.dashboardHostnames[0]": "o.example",
            },
            "https",
        ),
    ],
)
def test_the_study_page_links_to_the_dashboard_where_it_has_a_host(
    settings: dict[str, str], url: str | None
) -> None:
    made = manifests((), tuple(settings.items()))
    container = named(made, "Deployment", "r-foldwise")["spec"]["template"]["spec"]["containers"][0]
    linked = [item["value"] for item in container["env"] if item["name"] == "FOLDWISE_DASHBOARD_URL"]
    assert linked == ([f"{url}://o.example/"] if url else [])
