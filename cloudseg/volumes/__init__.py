"""All storage: volumes of voxels, and small objects beside them."""
