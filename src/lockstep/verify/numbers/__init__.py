"""Numbers by their bits: exact casts, and what differs between two blocks."""
