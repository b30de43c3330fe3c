"""The engine: one loop that takes an event, folds it, decides, acts, and journals what came of it."""
