"""``cloudseg import-model``: a published checkpoint becomes a model package."""

from __future__ import annotations

from pathlib import Path

import click

from cloudseg.cli.values import positive_numbers, whole_numbers
from cloudseg.errors import ConflictError, SpecError


@click.command("import-model")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("output")
@click.option("--name", required=True, help="Name of the model.")
@click.option(
    "--voxel-size", metavar="X,Y,Z", required=True, help="Edges of the voxels it was trained on, in nm."
)
@click.option(
    "--mean", type=float, required=True, help="Grey level (0 to 255) that becomes 0: the mean of your image."
)
@click.option(
    "--deviation", type=float, required=True, help="Grey levels that become 1: the standard deviation."
)
@click.option("--licence", required=True, help="Terms of the weights.")
@click.option("--source", required=True, help="Where the checkpoint comes from, and what it learned from.")
@click.option("--order", default="gcr", show_default=True, help="layer_order of its configuration.")
@click.option(
    "--groups",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="num_groups of its configuration.",
)
@click.option(
    "--patch", metavar="X,Y,Z", default="160,160,80", show_default=True, help="Patch for inference."
)
@click.option(
    "--context", metavar="X,Y,Z", default="32,32,16", show_default=True, help="Rim that is thrown away."
)
@click.option(
    "--fov",
    metavar="X,Y,Z",
    default="33,33,33",
    show_default=True,
    help="fov_size of a flood-filling network.",
)
@click.option("--deltas", metavar="X,Y,Z", default="8,8,8", show_default=True, help="Its deltas.")
def import_model(
    checkpoint: Path,
    output: str,
    *,
    name: str,
    voxel_size: str,
    mean: float,
    deviation: float,
    licence: str,
    source: str,
    order: str,
    groups: int,
    patch: str,
    context: str,
    fov: str,
    deltas: str,
) -> None:
    """Turn a published model into the package OUTPUT.

    CHECKPOINT is the .pytorch file of a boundary model of PlantSeg or pytorch-3dunet, or a flood-filling network of
    google/ffn: its TensorFlow checkpoint without the endings (model.ckpt-27465036), or its tensors as .safetensors.
    Only tensors are read. What the file does not say stands in the configuration beside it. Boundary models were
    trained on images with mean 0 and deviation 1, so --mean and --deviation are those of the image you will run it on;
    those of a flood-filling network are image_mean and image_stddev of its configuration.
    """
    from cloudseg.models.package import (
        SPEC_NAME,
        ModelDescription,
        Normalisation,
        Provenance,
        save_package,
    )
    from cloudseg.models.predict import set_weights
    from cloudseg.models.published import read_published
    from cloudseg.models.registry import build_network
    from cloudseg.volumes import open_objects

    if open_objects(output).exists(SPEC_NAME):
        raise ConflictError(f"{output} holds a model package already; give another folder, or delete it")
    if not deviation > 0:
        raise SpecError(f"--deviation must be above 0, got {deviation}")
    common = {
        "name": name,
        "voxel_size_nm": positive_numbers(voxel_size, option="--voxel-size"),
        "normalisation": Normalisation(mean=mean, deviation=deviation),
        "training": Provenance(data=(source,), n_steps=0, seed=0, recipe=f"imported from {checkpoint.name}"),
        "licence": licence,
    }
    if _is_flood_filling(checkpoint):
        from cloudseg.models.published_ffn import read_published_ffn

        stack, weights = read_published_ffn(
            checkpoint,
            fov=whole_numbers(fov, option="--fov") or (33, 33, 33),
            deltas=whole_numbers(deltas, option="--deltas") or (8, 8, 8),
        )
        settings = {"arguments": stack, "output": "object", "patch_shape": stack.fov}
        settings |= {"context": (0, 0, 0), "blend": (0, 0, 0)}
        told = f"flood-filling network, {stack.depth} blocks of {stack.width} features, fields of view of {stack.fov}"
    else:
        arguments, weights = read_published(checkpoint, order=order, n_groups=groups)
        rim = whole_numbers(context, option="--context")
        settings = {
            "arguments": arguments,
            "output": "boundaries",
            "patch_shape": whole_numbers(patch, option="--patch"),
            "context": rim if not arguments.flat or rim is None else (rim[0], rim[1], 0),
            "blend": (8, 8, 4),
        }
        told = (
            f"{'residual' if arguments.residual else 'plain'} {'2D' if arguments.flat else '3D'} U-Net of "
            f"{', '.join(map(str, arguments.widths))} features"
        )
    description = ModelDescription.load(common | settings, where=f"{checkpoint} as a model package")
    set_weights(build_network(description), weights, where=str(checkpoint))
    spec = save_package(output, description, weights)
    click.echo(f"{output}: {spec.weights.n_parameters:,} parameters, {told}")
    use = f'model = "{output}" in a stage of kind ffn'
    if description.output == "boundaries":
        use = f'models = ["{output}"] in a stage of kind boundaries'
    click.echo(f"use it with: {use}")


def _is_flood_filling(checkpoint: Path) -> bool:
    """Whether it is a checkpoint of TensorFlow, or a safetensors file: PyTorch's own files are of other networks."""
    if checkpoint.suffix in (".index", ".safetensors"):
        return True
    return checkpoint.with_name(f"{checkpoint.name}.index").is_file()
