"""Where a collection comes from: one file per kind of source, each with `read(source) -> Collection`."""
