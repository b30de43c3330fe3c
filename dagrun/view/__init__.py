"""What people and other programs see of a run. Knows the core; the engine does not know it."""
