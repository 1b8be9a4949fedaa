"""Data and weights from outside."""
