"""How the service is, and who is told: what it knows of itself, the verdict on it, heartbeat, ping and systemd."""
