"""Files that other programs read and write, each in one place."""
