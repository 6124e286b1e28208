"""Faults planted into a user's own target, to see each of them caught."""
