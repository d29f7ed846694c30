"""A phantom brain: EM-like tissue with cell bodies, whose picture and exact truth are functions of the place."""

from cloudseg.testing.phantom_brain.brain import PhantomBrain
from cloudseg.testing.phantom_brain.door import brain_uri
from cloudseg.testing.phantom_brain.spec import BrainSpec
from cloudseg.testing.phantom_brain.truth import truth_table

__all__ = ["BrainSpec", "PhantomBrain", "brain_uri", "truth_table"]
