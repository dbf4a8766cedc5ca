"""Canary triggers: backdoors planted in throw-away copies of a model, to see which check finds them."""
