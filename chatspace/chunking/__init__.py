"""Long rows as chunks, for every kind that embeds text."""
