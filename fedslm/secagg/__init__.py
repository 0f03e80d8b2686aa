"""Secure aggregation, `fedslm-secagg/1`: the coordinator reads a sum and nothing else. No network, no files, no clock."""
