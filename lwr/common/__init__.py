"""What any step needs, without torch: errors, files, hashes, exits, paths, provenance, progress."""
