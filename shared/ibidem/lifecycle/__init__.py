"""Admission, lifetime, eviction and invalidation of answers."""
