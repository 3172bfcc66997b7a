"""Ibidem beside the other semantic caches, on sets of questions that none of them was tuned on."""
