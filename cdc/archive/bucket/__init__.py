"""Where objects live: S3, a directory, memory; what a bucket must keep to, and what it costs."""
