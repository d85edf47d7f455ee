"""Buckets store objects: on S3, in a directory, in memory. Also the contract of a bucket, and what it costs."""
