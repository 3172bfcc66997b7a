"""Where near questions are found: vectors in memory, and the vector index that holds the many."""
