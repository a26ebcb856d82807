"""The kind embed: a local encoder."""
