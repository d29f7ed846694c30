"""Which stages in which order, at what cost: planned, carried out, followed and verified."""
