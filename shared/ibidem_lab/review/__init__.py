"""A small local page on which people judge what the cache was unsure of; needs ibidem-cache[review]."""
