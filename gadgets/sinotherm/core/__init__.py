"""Values and facts that everything else shares: no I/O, no torch."""
