"""Helpers that know nothing of caching."""
