"""Readers and writers of files that other programs use as well, one module per format."""
