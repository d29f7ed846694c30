"""Training: examples from labelled volumes, augmentation, loss, the loop, and the model package at its end."""
