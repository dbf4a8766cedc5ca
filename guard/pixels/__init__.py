"""From encoded images to rows of a model's input: the very code with which calibration read its images.

``decoding`` and ``resizing`` need Pillow (extra ``images``); whoever imports them does so late.
"""
