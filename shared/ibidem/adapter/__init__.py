"""For adapters to frameworks: one call of a model through the cache, and what a model's identity is."""
