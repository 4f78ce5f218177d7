"""Training of the networks on simulated scans."""
