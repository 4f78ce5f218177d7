"""Timings against named peers in the same run."""
