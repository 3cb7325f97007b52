"""Network access: guarded connections, size-limited downloads, S3."""
