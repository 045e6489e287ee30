"""Files and pipes as text."""
