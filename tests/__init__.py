"""Tests: closed forms of the method, and the pipeline as a user meets it."""
