"""Runs: init, the training loop with its telemetry and checkpoints, evaluation, promotion."""
