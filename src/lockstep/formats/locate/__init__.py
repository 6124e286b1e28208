"""Where the leaves of each format lie: one module per format, each with `locate(path) -> Store`."""
