"""Is our flood filling the published one? What does its loop cost, what do the faster ways change.

On a cube from the middle of FIB-25 sample 2 with the published network (or on a phantom with one made by hand):

- ``--steps``: processor time of a step in the loop, beside one pass of the network alone;
- without it: the faithful run beside faster ones: steps, seconds, accuracy against the open labels and against the
  faithful run, where fields of view may be centred (half a field of view from the sides);
- ``--blocks``: the same cube in 2 x 2 x 2 blocks, stitched, against one run, and the table of seams;
- ``--cascade``: flood filling of what affinities leave uncertain, beside either alone;
- ``--whole``: the faithful run on the whole volume against the published segmentation: 25,799 steps, two hours of one
  core. ``--state FILE`` keeps it on the way, ``--minutes`` stops there, and objects that are done are compared;
- ``--first``: the first of these objects, which must be id 1. 1,884 steps, seven minutes.

Usage: python benchmarks/ffn.py [--data $CLOUDSEG_DATA] [--edge 80] [--modes ... | --steps 12 | ...]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cloudseg.models.flood import FloodNetwork, load_flood_network
from cloudseg.models.package import save_package
from cloudseg.models.predict import use_threads
from cloudseg.models.published_ffn import read_published_ffn
from cloudseg.ops.contingency import contingency
from cloudseg.ops.flood import Canvas, FloodRule, normalised
from cloudseg.ops.flood_seeds import peak_seeds, with_full_view
from cloudseg.tasking.steps import Layer, Site, Stage
from cloudseg.tasking.task import Context
from cloudseg.testing.bright_model import bright_package
from cloudseg.testing.phantom import neurite_phantom
from cloudseg.testing.runs import print_table, store
from cloudseg.testing.tiny_model import tiny_description
from cloudseg.volumes import create_volume, open_objects, open_volume
from cloudseg.volumes.tables import get_table
from cloudseg_tasks.affinities import AffinitiesStage
from cloudseg_tasks.agglomerate import AgglomerateStage
from cloudseg_tasks.ffn import CascadeStage, FloodStage
from cloudseg_tasks.ffn_stitch import FloodStitchStage
from cloudseg_tasks.supervoxels import SupervoxelsStage

VARIANTS = {
    "faithful": {},
    "waves of 8": {"wave": 8},
    "bfloat16, waves of 8": {"wave": 8, "precision": "bfloat16"},
    "bfloat16, waves of 8, moves of 12": {"wave": 8, "precision": "bfloat16", "delta": 12},
}


def package(folder: str, data: Path | None) -> str:
    """Write the published network, or one made by hand, as a package."""
    uri = f"file://{folder}/model"
    if data is None:
        return bright_package(uri, fov=(17, 17, 17), deltas=(4, 4, 4))
    arguments, weights = read_published_ffn(data / "models" / "ffn_fib25.safetensors")
    shape = {"patch_shape": arguments.fov, "context": (0, 0, 0), "blend": (0, 0, 0)}
    # Voxels of 8 nm, grey levels less 128 over 33: as the tiny model's.
    description = tiny_description(
        name="ffn_fib25", architecture="ffn", output="object", arguments=arguments, offsets=(), **shape
    )
    save_package(uri, description, weights)
    return uri


def cube(data: Path | None, edge: int) -> tuple[np.ndarray, np.ndarray]:
    """Return image and labels of the middle of sample 2 (labels are 0 from section 160 on), or of a phantom."""
    if data is None:
        phantom = neurite_phantom((edge, edge, edge), seed=0)
        return phantom.image, phantom.labels
    low = (250 - edge) // 2
    at = (slice(low, low + edge),) * 3
    image = np.load(data / "fib25" / "sample2_image.npz")["image"]
    truth = open_labels(data, image.shape)
    return np.asfortranarray(image[at]), np.asfortranarray(truth[at])


def open_labels(data: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return the labels of sample 2, 0 from section 160 on."""
    truth = np.zeros(shape, np.uint64)
    with np.load(data / "fib25" / "sample2_labels_z000_160.npz") as arrays:
        truth[:, :, :160] = next(iter(arrays.values()))
    return truth


def prepared(
    image: np.ndarray, network: FloodNetwork, *, wave: int = 1, delta: int = 0
) -> tuple[Canvas, np.ndarray]:
    """Return a canvas and its seeds."""
    norm = network.spec.normalisation
    deltas = (delta,) * 3 if delta else network.deltas
    rule = FloodRule(fov=network.fov, deltas=deltas, wave=wave)
    canvas = Canvas(normalised(image, mean=norm.mean, deviation=norm.deviation), rule, network)
    return canvas, with_full_view(peak_seeds(canvas.image), canvas.shape, fov=network.fov)


def scores(labels: np.ndarray, truth: np.ndarray, *, ignored: tuple[int, ...] = ()) -> tuple[str, ...]:
    """Return adapted Rand error and both parts of the variation of information."""
    s = contingency(labels, truth).scores(ignore_seg=ignored)
    return tuple(f"{v:.4f}" for v in (s.adapted_rand_error, s.voi_split, s.voi_merge))


def cost_of_steps(image: np.ndarray, uri: str, *, n_steps: int) -> None:
    """Print what a step costs beside a pass of the network alone, of as many fields of view at once."""
    rows = []
    for name, given in VARIANTS.items():
        options = dict(given)
        network = load_flood_network(uri, device="cpu", precision=options.pop("precision", "float32"))
        options["delta"] = min(options.get("delta", 0), network.fov[0] // 2)  # a small network
        views = np.random.default_rng(0).normal(size=(1, 2, *network.fov)).astype(np.float32)
        network(views)
        bare, looped, n_done = 0.0, 0.0, 0
        canvas, seeds = prepared(image, network, **options)
        canvas.run(seeds, pause=lambda: True)
        for _ in range(2):  # in turns, so that a busy machine troubles both
            started = time.process_time()
            for _ in range(n_steps):
                network(views)
            bare += time.process_time() - started
            started, before = time.process_time(), canvas.counts.steps
            until = before + n_steps
            canvas.run(seeds, pause=lambda c=canvas, n=until: c.counts.steps >= n)
            looped += time.process_time() - started
            n_done += canvas.counts.steps - before
        bare, looped = bare / (2 * n_steps), looped / max(1, n_done)
        rows.append((name, n_done, f"{bare:.4f}", f"{looped:.4f}", f"{bare / looped:.0%}"))
    print_table(
        "processor seconds of a step", ("mode", "steps", "network alone", "in the loop", "share"), rows
    )


def compare(image: np.ndarray, truth: np.ndarray, uri: str, modes: list[str]) -> None:
    """Print the table of modes."""
    networks = {p: load_flood_network(uri, device="cpu", precision=p) for p in ("float32", "bfloat16")}
    half = networks["float32"].fov[0] // 2
    inner = (slice(half, -half),) * 3
    rows, faithful, faithful_s = [], np.zeros(0), 0.0
    for name in modes:
        options = dict(VARIANTS[name])
        network = networks[options.pop("precision", "float32")]
        options["delta"] = min(options.get("delta", 0), half)  # a small network
        canvas, seeds = prepared(image, network, **options)
        started = time.process_time()
        canvas.run(seeds)
        seconds = time.process_time() - started
        print(f"{name}: {canvas.counts}, {seconds:.1f} s", flush=True)
        labels, counts = canvas.labels()[inner], canvas.counts
        if name == "faithful":
            faithful, faithful_s = labels, seconds
        between = contingency(labels, faithful).scores(ignore_truth=())
        rows.append(
            (
                name,
                counts.steps,
                counts.waves,
                counts.fills,
                counts.objects,
                f"{seconds:.1f}",
                f"{faithful_s / seconds:.1f}",
                *scores(labels, truth[inner]),
                *scores(labels, truth[inner], ignored=(0,)),
                f"{between.voi_sum:.3f}",
            )
        )
    header = ("mode", "steps", "waves", "fills", "objects", "CPU s", "times faster", "ARE", "split", "merge")
    print_table(
        f"modes, {image.shape[0]}^3, inner {labels.shape[0]}^3",
        (*header, "ARE without 0", "split", "merge", "VOI to faithful"),
        rows,
    )


def blockwise(
    image: np.ndarray, truth: np.ndarray, uri: str, folder: str, *, precision: str, halo: int
) -> None:
    """Print how 2 x 2 x 2 blocks agree with one run, and the seams."""
    edge = image.shape[0]
    chunk = edge // 2
    source = store(f"file://{folder}/image", image)
    results, seams = {}, {}
    for name, block in {"one": edge, "blocks": chunk}.items():
        root = f"file://{folder}/{name}"
        shape = {"block_shape": (block,) * 3, "chunk_shape": (chunk,) * 3, "halo": (halo,) * 3}
        stages = (
            FloodStage(model=uri, device="cpu", precision=precision, wave=8, **shape),
            FloodStitchStage(margin_nm=8.0 * (halo // 2), **shape),
        )
        layers = {"image": Layer("image", source, open_volume(source).info)}
        context = Context(open_volume=open_volume, open_objects=open_objects)
        started = time.process_time()
        run_inline(stages, root, layers, context)
        volume = open_volume(f"{root}/segmentation")
        results[name] = (volume.read(volume.info.bounds), time.process_time() - started, context.counters)
        seams = get_table(open_objects(f"{root}/graph/ffn_stitch"), "seams.parquet")
    half = load_flood_network(uri, device="cpu").fov[0] // 2
    inner = (slice(half, -half),) * 3
    one = results["one"][0]
    rows = [
        (
            name,
            len(np.unique(labels)) - 1,
            counters["steps"],
            f"{seconds:.1f}",
            *scores(labels[inner], truth[inner]),
            *scores(labels[inner], one[inner]),
        )
        for name, (labels, seconds, counters) in results.items()
    ]
    header = ("run", "objects", "steps", "CPU s", "ARE", "split", "merge")
    print_table(
        f"blocks of {chunk}^3 and a halo of {halo}, {precision}",
        (*header, "ARE to one", "split", "merge"),
        rows,
    )
    names = list(seams)
    print_table("seams", names, zip(*(seams[n].tolist() for n in names), strict=True))


def cascade(
    image: np.ndarray, truth: np.ndarray, uri: str, folder: str, *, precision: str, threshold: float
) -> None:
    """Print flood filling of what a U-Net is not sure of beside either of them alone."""
    edge = image.shape[0]
    source = store(f"file://{folder}/image", image)
    blocks = {"block_shape": (edge,) * 3, "chunk_shape": (edge // 2,) * 3}
    grow = {"model": uri, "device": "cpu", "precision": precision, "wave": 8, **blocks}
    affinities = (AffinitiesStage(model="fib25", device="cpu"), SupervoxelsStage())
    sure = AgglomerateStage(threshold=threshold)
    runs = {
        "affinities alone, at 0.5": ((*affinities, AgglomerateStage()), "segmentation"),
        f"affinities alone, at {threshold}": ((*affinities, sure), "segmentation"),
        "flood filling alone": ((FloodStage(**grow),), "objects"),
        f"cascade on affinities at {threshold}": ((*affinities, sure, CascadeStage(**grow)), "objects"),
    }
    half = load_flood_network(uri, device="cpu").fov[0] // 2
    inner = (slice(half, -half),) * 3
    rows = []
    for name, (stages, layer) in runs.items():
        root = f"file://{folder}/{len(rows)}"
        layers = {"image": Layer("image", source, open_volume(source).info)}
        context = Context(open_volume=open_volume, open_objects=open_objects)
        started = time.process_time()
        run_inline(stages, root, layers, context)
        seconds = time.process_time() - started
        volume = open_volume(layers[layer].uri)
        labels = volume.read(volume.info.bounds)[inner]
        rows.append(
            (
                name,
                context.counters.get("steps", 0),
                f"{seconds:.1f}",
                len(np.unique(labels[labels > 0])),
                *scores(labels, truth[inner]),
                *scores(labels, truth[inner], ignored=(0,)),
            )
        )
        print(rows[-1], flush=True)
    header = (
        "method",
        "steps",
        "CPU s",
        "objects",
        "ARE",
        "split",
        "merge",
        "ARE without 0",
        "split",
        "merge",
    )
    print_table(f"cascade, {edge}^3, inner {labels.shape[0]}^3, {precision}", header, rows)


def run_inline(stages: Sequence[Stage], root: str, layers: dict[str, Layer], context: Context) -> None:
    """Run all tasks of some stages here; ``layers`` receives what they make."""
    for stage in stages:
        plan = stage.expand(Site(root, layers, open_volume, open_objects))
        for layer in plan.layers:
            create_volume(layer.uri, layer.info)
            layers[layer.name] = layer
        for step in plan.steps:
            if step.prepare:
                step.prepare()
            for task in step.tasks():
                task.run(context)


def whole(data: Path, uri: str, *, state: Path | None, minutes: float, n_objects: int) -> None:
    """Fill the whole volume, object by object, and compare those that are done with the published ones."""
    network = load_flood_network(uri, device="cpu")
    image = np.load(data / "fib25" / "sample2_image.npz")["image"]
    canvas = Canvas(normalised(image, mean=128, deviation=33), FloodRule(), network)
    seeds = with_full_view(peak_seeds(canvas.image), canvas.shape, fov=network.fov)
    used = 0.0
    if state is not None and state.exists():
        with np.load(state) as arrays:
            saved = {name: arrays[name] for name in arrays.files}
        used = saved.pop("seconds").item()
        canvas.restore(saved)
    end, begun = time.monotonic() + 60 * minutes, time.process_time()
    done = False
    while not done and time.monotonic() < end and len(canvas.origins) < n_objects:
        until = min(end, time.monotonic() + 120)  # so much is lost at most
        done = canvas.run(
            seeds, pause=lambda t=until: time.monotonic() > t or len(canvas.origins) >= n_objects
        )
        if state is not None:
            seconds = np.array(used + time.process_time() - begun)
            np.savez(state.with_suffix(".new.npz"), **canvas.state(), seconds=seconds)
            state.with_suffix(".new.npz").replace(state)
    seconds = used + time.process_time() - begun
    counts, n = canvas.counts, len(canvas.origins)
    print(
        f"{len(seeds)} seeds, {canvas.n_seeds_done} of them done; {counts}; {seconds:.0f} CPU s", flush=True
    )
    if n:
        compare_with_published(canvas, data, done=done)
    if not done and n < n_objects:
        print(f"not all is done after {minutes:g} minutes: the same command with --state goes on from there")


def compare_with_published(canvas: Canvas, data: Path, *, done: bool) -> None:
    """Print how finished objects agree with those of the same ids, and both with the open labels."""
    n = len(canvas.origins)
    published = next(iter(np.load(data / "fib25" / "ffn_published_sample2.npz").values()))
    ours = canvas.labels()
    truth = open_labels(data, ours.shape)
    theirs = np.where(published <= n, published, 0)
    decided = (ours > 0) | (theirs > 0) | done
    differing = [i for i in range(1, n + 1) if ((ours == i) != (theirs == i)).any()]
    _, x, y, z, steps = canvas.origins[0]
    one, its = ours == 1, published == 1
    print_table(
        "the first object",
        ("seed (z, y, x)", "steps", "voxels", "published", "voxels that differ"),
        [((z, y, x), steps, int(one.sum()), int(its.sum()), int((one != its).sum()))],
    )
    print_table(
        "objects in the order of their seeds, against the published ones of the same ids",
        ("objects", "voxels decided", "objects that differ", "voxels that differ", "ARE"),
        [
            (
                n,
                int(decided.sum()),
                f"{len(differing)}: {differing[:8]}",
                int((ours != theirs).sum()),
                f"{contingency(ours[decided], theirs[decided]).scores(ignore_truth=()).adapted_rand_error:.6f}",
            )
        ],
    )
    labelled = decided & (truth > 0)
    if labelled.any():
        print_table(
            f"against the open labels, on {int(labelled.sum())} of these voxels",
            ("segmentation", "ARE", "VOI split", "VOI merge"),
            [
                (name, *scores(labels[labelled], truth[labelled]))
                for name, labels in (("ours", ours), ("published", theirs))
            ],
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("CLOUDSEG_DATA"))
    parser.add_argument("--edge", type=int, default=80)
    parser.add_argument(
        "--steps", type=int, default=0, help="compare the cost of so many steps, nothing else"
    )
    parser.add_argument("--modes", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--blocks", action="store_true")
    parser.add_argument("--cascade", action="store_true")
    parser.add_argument("--threshold", type=float, default=0.8, help="of the affinities in the cascade")
    parser.add_argument("--halo", type=int, default=32)
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--first", action="store_true")
    parser.add_argument("--state", type=Path)
    parser.add_argument("--minutes", type=float, default=600)
    given = parser.parse_args()
    use_threads(1)
    data = given.data and Path(given.data)
    with tempfile.TemporaryDirectory() as folder:
        uri = package(folder, data)
        if given.whole or given.first:
            if data is None:
                parser.error("--whole and --first need the real data: give --data")
            n_objects = 1 if given.first else sys.maxsize
            whole(data, uri, state=given.state, minutes=given.minutes, n_objects=n_objects)
            return
        image, truth = cube(data, given.edge)
        if given.steps:
            cost_of_steps(image, uri, n_steps=given.steps)
        elif given.cascade:
            cascade(image, truth, uri, folder, precision=given.precision, threshold=given.threshold)
        elif given.blocks:
            blockwise(image, truth, uri, folder, precision=given.precision, halo=given.halo)
        else:
            compare(image, truth, uri, given.modes)


if __name__ == "__main__":
    main()
