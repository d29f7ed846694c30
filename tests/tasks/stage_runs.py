"""Running stages without a queue: what the tests of tasks share."""

from __future__ import annotations

import random

from cloudseg.tasking.steps import Site
from cloudseg.tasking.task import Context
from cloudseg.volumes import create_volume, open_objects, open_volume
from cloudseg_tasks.registry import load_task


def run_and_count(stages, layers, root, *, seed=0, repeat=False):
    """Create layers and run every task from its own JSON, shuffled within a step; return layers and counters."""
    layers, counters = dict(layers), {}
    for stage in stages:
        plan = stage.expand(Site(root, layers, open_volume, open_objects))
        for layer in plan.layers:
            create_volume(layer.uri, layer.info)
            layers[layer.name] = layer
        for step in plan.steps:
            if step.prepare:
                step.prepare()
            tasks = list(step.tasks()) * (2 if repeat else 1)
            assert len({t.id for t in tasks}) == step.n_tasks > 0
            assert step.task_memory_bytes > 0
            random.Random(seed).shuffle(tasks)
            for task in tasks:
                ctx = Context(open_volume=open_volume, open_objects=open_objects)
                load_task(task.canonical_json()).run(ctx)
                for name, amount in ctx.counters.items():
                    counters[step.name, name] = counters.get((step.name, name), 0) + amount
    return layers, counters


def run_stages(stages, layers, root, *, seed=0, repeat=False):
    """Do the same; return all layers' voxels."""
    layers, _ = run_and_count(stages, layers, root, seed=seed, repeat=repeat)
    return {name: open_volume(layer.uri).read(layer.info.bounds) for name, layer in layers.items()}
