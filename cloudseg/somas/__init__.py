"""The soma catalogue: nothing is here yet."""
