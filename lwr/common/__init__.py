"""Helpers of all steps, without torch: errors, files, hashes, exits, paths, provenance, progress."""
