"""Collects the service's vitals, judges them, and reports the verdict to a heartbeat, a ping and systemd."""
