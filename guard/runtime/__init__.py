"""Runtime: the device and async side. Models run here, requests wait here."""
