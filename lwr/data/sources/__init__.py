"""Sources of collections: a module each, with a function `read` that takes its config class."""
