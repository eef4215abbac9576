"""What the service tells the world, by whatever way."""
