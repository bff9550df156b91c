"""The loop over rounds, and the rounds on disk."""
