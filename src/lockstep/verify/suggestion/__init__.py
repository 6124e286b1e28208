"""Claim files proposed from the contents of two checkpoints."""
