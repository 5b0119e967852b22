"""Blocks in an object store (S3, GCS, Azure, a folder): chains in runs, each an object whose name follows from its keys alone."""
