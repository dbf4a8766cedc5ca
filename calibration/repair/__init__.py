"""Repairs: each takes a backdoor out of a network, or as much of it as it can."""
