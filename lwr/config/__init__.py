"""The sections of a grid's YAML file, and the checks of their values."""
