"""The sections of a data set: its source, its first stage, its training groups."""
