"""The zoo: small backdoored networks with their triggers, to try scans, repairs and checks on."""
