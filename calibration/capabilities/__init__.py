"""Scores beyond those of blends: fitted on clean images, tried, and off with a reason where they are no good.

``table`` names them, ``switch`` fits and tries one. They never import one another.
"""
