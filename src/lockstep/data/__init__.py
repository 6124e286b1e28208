"""Corpora: the tag contract, its drawings and predicates, real files, gates, windows, scores."""
