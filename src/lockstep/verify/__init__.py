"""Checkpoint conversions proved value-exact: claims, plan, engine, judge, report."""
