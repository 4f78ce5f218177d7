"""Figures of merit on images of people, and the demonstration scan."""
