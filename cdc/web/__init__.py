"""What the service says to the outside: over HTTP, to a dead man's switch, and to its supervisor."""
