"""Pure algorithms: arrays in, arrays out."""
