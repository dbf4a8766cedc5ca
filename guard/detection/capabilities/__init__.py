"""Scores beyond those of blends, pure: each sees what blends do not, where a model allows it.

They are fitted, and tried, by ``calibration.capabilities``.
"""
