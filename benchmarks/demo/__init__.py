"""The demo's backdoored model, its trigger and its slice of clean images."""
