"""The map of a converter, recovered by running it on markers."""
