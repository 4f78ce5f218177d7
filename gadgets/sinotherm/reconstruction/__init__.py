"""Classical reconstruction: iterative SENSE, total variation, temporal constraints, view sharing."""
