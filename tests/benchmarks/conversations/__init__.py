"""Pairs of conversations: whether the last answer of one is repeated in the other, and whether it may be."""
