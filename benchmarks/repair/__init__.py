"""Repairs of the zoo's backdoored networks, measured."""
