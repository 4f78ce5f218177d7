"""From complex images to temperature, its uncertainty, dose, statistics and alarms."""
