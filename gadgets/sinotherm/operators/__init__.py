"""Linear operators of radial, Cartesian and fan-beam imaging, each with its exact adjoint."""
