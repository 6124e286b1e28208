"""Trains, compiles and runs small language models, and proves every hand-off on the way."""

__version__ = "0.1.0"
