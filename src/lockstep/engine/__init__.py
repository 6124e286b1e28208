"""Sessions: prefill, decode and sample; training steps, checkpoints and weight files."""
