"""The generated reference of the config: its JSON schema, and its README."""
