"""The read-only client for users and notebooks: nothing is here yet; open volumes with `cloudseg.open_volume`."""
