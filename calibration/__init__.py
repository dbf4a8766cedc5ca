"""calibration: the offline workshop that measures, scans and repairs the models guard serves.

It meets ``guard`` through the model artifact only. Rooms that need gradients import torch;
``guard calibrate`` does not.
"""
