"""Finished runs, read as a stream: exports, search, near-duplicates."""
