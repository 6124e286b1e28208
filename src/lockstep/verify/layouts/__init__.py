"""Moves of elements as pieces, and the coverage that they come to."""
