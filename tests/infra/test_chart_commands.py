"""What the chart starts exists: commands and flags, addresses, stages, memory, probes, variables, metrics."""

from __future__ import annotations

import re
import shlex
import threading
import urllib.request
from pathlib import Path

import click
import pytest

from cloudseg.cli.main import cli
from cloudseg.cli.worker import parse_size
from cloudseg.geometry import Box
from cloudseg.pipelines.spec import parse_spec
from cloudseg.server.app import create_app, running
from cloudseg.somas.store import CatalogSpec, write_version
from cloudseg.tasking.metrics import OUTCOMES, Health, WorkerMetrics, serving
from cloudseg.tasking.options import WorkerOptions
from cloudseg.tasking.queue import open_queue
from cloudseg.tasking.sqs_client import SqsAddress
from cloudseg.tasking.steps import Layer, Site
from cloudseg.testing.bright_model import bright_package
from cloudseg.testing.tiny_model import tiny_package
from cloudseg.volumes import open_objects
from cloudseg.volumes.protocol import VolumeInfo
from cloudseg_tasks.stages import STAGES, stage_class

REPOSITORY = Path(__file__).resolve().parents[2]
INFRA = REPOSITORY / "infra"


def parsed(arguments):
    """Return the command and its values, parsed by the real command line and not run."""
    command, context = cli, click.Context(cli, info_name="cloudseg")
    while isinstance(command, click.Group):
        name, *arguments = arguments
        command = command.get_command(context, name)
        assert command is not None, f"there is no command {name}"
    return command, command.make_context(name, list(arguments)).params


def commands(manifests, pod_specs):
    for manifest in manifests:
        for spec in pod_specs(manifest):
            for container in [*spec.get("initContainers", []), *spec["containers"]]:
                yield manifest, container, *parsed([str(text) for text in container["args"]])


def test_every_command_of_the_chart_parses(manifests, pod_specs):
    names = [command.name for _, _, command, _ in commands(manifests, pod_specs)]
    assert "worker" in names
    assert set(names) <= {"worker", "run", "serve"}


def test_the_parser_refuses_what_does_not_exist():
    with pytest.raises(click.UsageError, match="No such option"):
        parsed(["worker", "sqs://q", "--proceses=3"])
    with pytest.raises(AssertionError, match="no command"):
        parsed(["works"])
    with pytest.raises(click.UsageError):
        parsed(["worker", "sqs://q", "--processes=none"])


def test_workers_do_what_their_values_say(rendered, pod_specs, default_values):
    found = {}
    for manifest, _, command, params in commands(rendered("aws"), pod_specs):
        if command.name == "worker":
            found[manifest["metadata"]["labels"]["cloudseg/pool"]] = params
    assert set(found) == {"cpu", "gpu"}
    for pool, params in found.items():
        values = default_values["pools"][pool]
        assert params["queue"] == f"sqs://eu-west-1/cloudseg-{pool}"
        assert params["processes"] == values["processes"]
        assert params["threads"] == values["cpuPerProcess"]
        assert params["until_empty"] is True
        assert params["gpu"] is values["gpu"]
        assert params["metrics_port"] == default_values["metrics"]["port"]
        assert params["log_format"] == "json"
        assert parse_size(params["max_memory"]) == values["memoryMiPerProcess"] * 2**20


def test_queues_of_workers_and_coordinators_are_those_that_keda_watches(rendered, pod_specs):
    for name in ("aws", "gcp", "everything"):
        manifests = rendered(name)
        watched = {}
        for job in (m for m in manifests if m["kind"] == "ScaledJob"):
            (trigger,) = job["spec"]["triggers"]
            address = SqsAddress.parse("sqs://" + trigger["metadata"]["queueURL"])
            assert address.region == trigger["metadata"]["awsRegion"]
            watched[address.name] = address.region
        for _, _, command, params in commands(manifests, pod_specs):
            if command.name in ("worker", "run"):
                address = SqsAddress.parse(params["queue" if command.name == "worker" else "executor"])
                assert watched[address.name] == address.region


def test_the_pipelines_of_coordinators_are_valid(rendered, pod_specs):
    n_pipelines = 0
    for name in ("aws", "everything"):
        manifests = rendered(name)
        (files,) = [m["data"] for m in manifests if m["kind"] == "ConfigMap"]
        for _, container, command, params in commands(manifests, pod_specs):
            if command.name != "run":
                continue
            assert str(params["file"]).startswith("/etc/cloudseg/")
            overrides = [
                *params["overrides"],
                f"workers={params['workers']}",
                f"executor={params['executor']}",
            ]
            spec = parse_spec(files[Path(params["file"]).name], where=container["name"], overrides=overrides)
            assert spec.workers == 0
            assert spec.executor.startswith("sqs://")
            n_pipelines += 1
    assert n_pipelines == 3


def test_a_pipeline_sends_each_stage_to_a_pool_that_is_meant_for_it(example_values, default_values):
    runs = example_values("aws")["coordinator"]["runs"]
    for run in runs:
        spec = parse_spec(run["pipeline"], where=run["name"], overrides=run.get("set", ()))
        for stage in spec.stages:
            assert stage.kind in default_values["pools"][run["pool"]]["stages"]


SOMA_TABLES = {"soma_catalogue", "soma_ids", "soma_annotations", "soma_thumbnails"}
# What takes whole sections, or the large blocks of the published soma scheme, fits no pool of small processes: such
# runs get machines of their own size.
OF_THEIR_OWN = {"colour_track", "soma_patches"}


def test_every_kind_of_stage_has_one_pool(default_values):
    placed = [stage for pool in default_values["pools"].values() for stage in pool["stages"]]
    assert sorted(placed) == sorted(set(STAGES) - OF_THEIR_OWN)


def earlier_somas():
    """Return the address of an empty catalogue, whose ids a stage may keep."""
    uri = "memory://tests/chart/somas"
    spec = CatalogSpec(
        dataset="chart",
        voxel_size_nm=(8, 8, 8),
        bounds_nm=((0, 0, 0), (65536, 65536, 32768)),
        made_from={"segmentation": "gs://bucket/earlier/somas"},
    )
    write_version(open_objects(uri), [], spec, version=1)
    return uri


def largest_task(kind):
    """Return the code's own estimate of the largest task of a stage, on a volume that no machine could hold."""

    def refuse(*args, **kwargs):
        raise AssertionError("planning opens nothing")

    # Cell bodies are looked for at a coarse scale.
    size_nm = (128, 128, 128) if kind.startswith("soma_") and kind not in SOMA_TABLES else (8, 8, 8)

    def layer(name, dtype, layer_type, n_channels=1, made_by=""):
        info = VolumeInfo(
            bounds=Box.of_shape((8192, 8192, 4096)),
            voxel_size_nm=size_nm,
            dtype=dtype,
            n_channels=n_channels,
            layer=layer_type,
        )
        return Layer(
            name=name, uri=f"gs://bucket/run/{name}", info=info, made_by=made_by, block_shape=(256, 256, 256)
        )

    layers = [
        layer("image", "uint8", "image"),
        layer("affinities", "uint8", "image", 3),
        layer("boundaries", "uint8", "image"),
        layer("supervoxels", "uint64", "segmentation"),
        layer("segmentation", "uint64", "segmentation", made_by="agglomerate.relabel"),
        layer("foreground", "uint8", "segmentation"),
        layer("cleaned", "uint8", "segmentation"),
        layer("soma_heads", "uint8", "image", 3),
        layer("soma_pieces", "uint64", "segmentation"),
        layer("objects", "uint64", "segmentation", made_by="ffn"),
    ]
    site = Site(
        root="gs://bucket/run",
        layers={found.name: found for found in layers},
        open_volume=refuse,
        open_objects=open_objects,  # of a model that does not come with cloudseg
    )
    membranes = tiny_package(
        "memory://tests/chart/membranes",
        output="boundaries",
        offsets=(),
        arguments={"n_out": 1, "widths": (4, 6), "pools": ((2, 2, 2),)},
    )
    bodies = tiny_package(
        "memory://tests/chart/bodies",
        output="heads",
        heads=("interior", "boundary", "distance"),
        offsets=(),
        arguments={"n_out": 3, "widths": (4, 6), "pools": ((2, 2, 2),)},
        voxel_size_nm=(128, 128, 128),
    )
    options = {
        "affinities": {"model": "fib25"},
        "boundaries": {"models": [membranes]},
        "tissue": {"mip": 0, "cell_nm": 400},
        "threshold": {"neighbourhood_nm": [2000, 2000, 2000]},
        "classify": {"classes": [{"name": "soma", "volume_um3": [50, 1e4]}]},
        "soma_heads": {"model": bodies},
        "ffn": {"model": bright_package("memory://tests/chart/flood")},
        "ffn_cascade": {"model": bright_package("memory://tests/chart/flood")},
        "consensus": {"a": "objects", "b": "segmentation"},
        "downsample": {"layers": ["segmentation"]},
        "soma_catalogue": {"layer": "segmentation"},
        "soma_annotations": {"layer": "segmentation"},
        "soma_thumbnails": {"layer": "segmentation"},
        "soma_ids": {"layer": "segmentation", "previous": 1, "catalogue": earlier_somas()},
    }
    stage = stage_class(kind).load({"kind": kind, **options.get(kind, {})}, where=kind)
    steps = stage.expand(site).steps
    # What few tasks do for much of the volume grows with it, and needs a pool of its own size: names of supervoxels,
    # upper nodes of the octree, all passes between basins, a multicut, what joins components, sections or objects.
    few = re.compile(
        r"supervoxels\.names|agglomerate\.(level|resolve)([2-9]|\d\d)|hmin_watershed\.merge|multicut\.solve"
        r"|components\.names|max_extend\.(links|names)|ffn_stitch\.names|consensus\.decide"
        r"|soma_locate\.choose|soma_segment\.(names|sizes)|soma_stitch\.decide"
    )
    return max(step.task_memory_bytes for step in steps if not few.fullmatch(step.name))


@pytest.mark.parametrize("kind", sorted(set(STAGES) - OF_THEIR_OWN))
def test_a_task_of_each_kind_fits_into_its_pool(kind, default_values):
    (pool,) = [pool for pool in default_values["pools"].values() if kind in pool["stages"]]
    estimate = largest_task(kind)
    assert estimate > 0
    # Estimates are right within a third.
    assert estimate * 4 / 3 <= pool["memoryMiPerProcess"] * 2**20


def test_the_cpu_pool_asks_for_no_more_than_twice_what_its_largest_task_needs(default_values):
    pool = default_values["pools"]["cpu"]
    assert pool["memoryMiPerProcess"] * 2**20 <= 2 * max(largest_task(kind) for kind in pool["stages"])


def test_receipts_and_provenance_learn_the_image(rendered, pod_specs):
    n_told = 0
    for _, container, command, _ in commands(rendered("aws"), pod_specs):
        if command.name in ("worker", "run"):
            environment = {entry["name"]: entry.get("value") for entry in container["env"]}
            assert environment["CLOUDSEG_IMAGE"] == container["image"]
            n_told += 1
    assert n_told >= 3


def test_requests_are_the_sum_of_the_processes_and_their_supervisor(rendered, pod_specs, default_values):
    for manifest, container, command, _ in commands(rendered("aws"), pod_specs):
        if command.name == "worker":
            pool = default_values["pools"][manifest["metadata"]["labels"]["cloudseg/pool"]]
            requests = container["resources"]["requests"]
            assert requests["cpu"] == pool["processes"] * pool["cpuPerProcess"]
            # On a GPU one more process holds the network that all share.
            shared = WorkerOptions(n_processes=pool["processes"], gpu=pool["gpu"]).shares_network
            wanted = (pool["processes"] + shared) * pool["memoryMiPerProcess"] + 512
            assert requests["memory"] == f"{wanted}Mi"


def answers(url):
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.status


def test_probes_ask_for_paths_that_are_answered(rendered, pod_specs, tmp_path):
    """By a real server, and by a real worker's port."""
    metrics, health = WorkerMetrics(lambda: open_queue(f"fq://{tmp_path}/queue")), Health()
    health.watch([Idle()], stopping=threading.Event())
    n_probes = 0
    with (
        running(create_app([])) as server,
        serving(metrics, health, host="127.0.0.1", port=0) as port,
    ):
        for _, container, command, _ in commands(rendered("everything"), pod_specs):
            ports = {port["name"] for port in container.get("ports", [])}
            for key, probe in container.items():
                if key.endswith("Probe"):
                    base = server if command.name == "serve" else f"http://127.0.0.1:{port}"
                    assert answers(base + probe["httpGet"]["path"]) == 200
                    assert probe["httpGet"]["port"] in ports
                    n_probes += 1
        (monitor,) = [m for m in rendered("everything") if m["kind"] == "PodMonitor"]
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert answers(f"http://127.0.0.1:{port}{endpoint['path']}") == 200
    assert n_probes == 9


class Idle:
    """A slot of a worker that has nothing to complain of."""

    def trouble(self):
        return ""

    def obstacle(self):
        return ""


def test_variables_are_read_by_somebody(manifests, pod_specs):
    ours = "\n".join(path.read_text() for path in (REPOSITORY / "cloudseg").rglob("*.py"))
    known = {
        "AWS_DEFAULT_REGION",
        "AWS_ROLE_ARN",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
    }  # boto3 and tensorstore read these
    for _, container, _, _ in commands(manifests, pod_specs):
        for variable in container["env"]:
            assert variable["name"] in known or variable["name"] in ours, variable["name"]


def test_alarms_use_metrics_and_outcomes_that_workers_have(rendered, tmp_path):
    metrics = WorkerMetrics(lambda: open_queue(f"fq://{tmp_path}/queue"))
    names = set(re.findall(r"^# TYPE (\w+) ", metrics.text().decode(), re.MULTILINE))
    (rules,) = [m for m in rendered("everything") if m["kind"] == "PrometheusRule"]
    expressions = [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    used = {name for text in expressions for name in re.findall(r"\bcloudseg_\w+", text)}
    assert len(used) >= 3
    assert used <= names
    outcomes = {
        outcome
        for text in expressions
        for listed in re.findall(r'outcome=~?"([a-z|]+)"', text)
        for outcome in listed.split("|")
    }
    assert outcomes
    assert outcomes <= set(OUTCOMES)


def shell_lines():
    for path in [INFRA / "README.md", *sorted((INFRA / "runbooks").glob("*.md"))]:
        for block in re.findall(r"^```\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip().startswith("cloudseg "):
                    yield path.name, line.strip()


def test_commands_of_the_pages_parse():
    lines = list(shell_lines())
    assert len(lines) > 10
    for name, line in lines:
        try:
            parsed(shlex.split(line, comments=True)[1:])
        except (click.ClickException, AssertionError) as error:
            pytest.fail(f"{name}: {line}: {error}")
