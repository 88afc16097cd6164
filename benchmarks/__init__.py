"""Measurements, one module each: `scripts/bench NAME`."""
