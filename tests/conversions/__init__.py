"""Makers of real conversions at small size, each with faults that can be planted in its target."""
