"""A better decision from a cache's own labels: what is trained, how it is chosen, and the gate."""
