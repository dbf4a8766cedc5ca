"""Detection: the pure core. numpy only; no files, no network, no clock, no event loop.

The functions here set the threshold offline and compare with it online, line for line.
"""
