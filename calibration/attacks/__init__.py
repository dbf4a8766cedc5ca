"""Backdoor attacks, one a file: they make the test subjects that scans, repairs and checks are tried on."""
