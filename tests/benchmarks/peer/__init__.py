"""What a project has to write to use the peer's manager with records: a model, an admin, a subclass."""
