"""The pruning step, as pure functions on named tensors."""
