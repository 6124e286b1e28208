"""Moves of elements as pieces, and how often they use each."""
