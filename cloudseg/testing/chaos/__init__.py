"""A run of the main job in which everything goes wrong that may, and the proofs that nothing came of it."""
