"""Shards: writing, task manifests, gather, verification."""
