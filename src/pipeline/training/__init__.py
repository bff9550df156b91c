"""One training: from a state to the state after a span of epochs, under masks."""
