"""Measurements of speed and memory, as ratios against a peer in one interleaved run. ``make bench`` runs them all."""
