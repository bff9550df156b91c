"""Make neural networks small by iterative magnitude pruning with learning-rate rewinding."""
