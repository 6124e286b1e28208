"""The OpenAI-compatible HTTP server: many requests, one session, one pass for all of them."""
