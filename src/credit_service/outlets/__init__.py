"""Where what was posted leaves the service: readers of the outbox, each at its own pace. They know no door."""
