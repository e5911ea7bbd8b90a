"""flags, environment, files -> one frozen tree of settings."""
