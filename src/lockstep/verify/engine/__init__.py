"""Claims compared within a budget of memory, and the record of it."""
