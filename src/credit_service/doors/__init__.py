"""The ways in. A door translates: bytes to commands, outcomes to answers; it decides nothing about money."""
