"""Ibidem: a semantic answer cache."""
