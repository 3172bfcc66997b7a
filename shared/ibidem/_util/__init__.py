"""Small tools that know nothing of a cache."""
