"""Pipelines from XML: which stages run, in which order, with which settings."""
