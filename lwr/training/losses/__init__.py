"""Losses of one exit, a file each, and the loss over all exits (`layerwise`)."""
