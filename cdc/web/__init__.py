"""Answers over HTTP with the service's state: the status page, its JSON, metrics, and the verdicts for probes."""
