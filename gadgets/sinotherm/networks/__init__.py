"""Primal-dual networks, their weights and the guard that watches them."""
