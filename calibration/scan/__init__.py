"""Looks for a backdoor in a model: one scanner a file, the table ``SCANNERS``, one contract for all."""
