"""Measurements, and the scripts that make what the demo needs."""
