"""How often stored answers would have been wrong, measured on the cache itself, and the budget kept by it."""
