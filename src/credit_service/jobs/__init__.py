"""Background jobs: work that the service does by itself, without a request or an event."""
