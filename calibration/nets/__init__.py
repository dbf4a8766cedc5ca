"""Small reference architectures, to train test subjects and to try repairs on."""
