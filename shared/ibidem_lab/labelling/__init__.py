"""Pairs of questions from a cache's own life, and a teacher who labels them."""
