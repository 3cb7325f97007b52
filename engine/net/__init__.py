"""The network: guarded connections, downloads within limits, S3."""
