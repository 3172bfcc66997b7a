"""A local page to judge pairs that the cache was unsure of; needs ibidem-cache[review]."""
