"""The one door to igneous: downsampling, meshes and skeletons as tasks of our envelope.

igneous computes; storage, order and names are ours. Blocks leave fragments under ``<root>/fragments/<stage>/``,
split by the shard that each label belongs to; a merge task finishes one shard. The outputs depend neither on the
order of tasks nor on repeats. Fragments are deleted by the stage's last step, which starts when all shards have
their receipts, unless ``keep_fragments`` is set; deleting them by hand is as safe from then on.
"""

from cloudseg_tasks.igneous.foreign import FOREIGN, run_foreign
from cloudseg_tasks.igneous.jobs import IgneousTask
from cloudseg_tasks.igneous.options import MeshOptions, ShardingOptions, SkeletonOptions
from cloudseg_tasks.igneous.stages import DownsampleStage, MeshesStage, SkeletonsStage, pyramid

__all__ = [
    "FOREIGN",
    "DownsampleStage",
    "IgneousTask",
    "MeshOptions",
    "MeshesStage",
    "ShardingOptions",
    "SkeletonOptions",
    "SkeletonsStage",
    "pyramid",
    "run_foreign",
]
