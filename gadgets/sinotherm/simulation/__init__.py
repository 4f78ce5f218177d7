"""Phantoms, coils, heating, drift and noise, written as a scanner would write them."""
