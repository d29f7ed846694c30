"""From a segmentation of somas to a published version of their catalogue.

Four steps: ``measure`` (what each block holds of each soma), ``merge`` (the sums), ``places`` (deepest voxels, regions,
meshes) and ``publish``. The rows do not depend on the blocks; see ``docs/formats/somas.md``.
"""

from cloudseg_tasks.soma_catalogue.measure import SomaMergeTask, SomaPartialsTask
from cloudseg_tasks.soma_catalogue.places import SomaPlacesTask
from cloudseg_tasks.soma_catalogue.publish import SomaCatalogueTask
from cloudseg_tasks.soma_catalogue.stage import SomaCatalogueStage

__all__ = [
    "SomaCatalogueStage",
    "SomaCatalogueTask",
    "SomaMergeTask",
    "SomaPartialsTask",
    "SomaPlacesTask",
]
