"""Which embedding model a place uses, and how it is exchanged while the cache serves."""
