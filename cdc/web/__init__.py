"""What the service says over HTTP: metrics, health, status, and the page that shows them."""
