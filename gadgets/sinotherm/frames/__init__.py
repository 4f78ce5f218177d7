"""From MRD readouts to frames, and from images back to MRD: header, whitening, spokes, assembly."""
