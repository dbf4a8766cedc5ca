"""Whether the false-rejection rate that a calibration certified holds on fresh clean images."""
