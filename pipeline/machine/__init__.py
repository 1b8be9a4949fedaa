"""Processes, locks, devices: nothing here changes a result."""
