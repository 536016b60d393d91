"""Steps before training: collections, the first stage, training groups."""
