"""Training and measuring around the cache: nothing here is imported when an answer is looked up."""
