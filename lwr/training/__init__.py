"""Losses, the trainer, and one training per cell."""
