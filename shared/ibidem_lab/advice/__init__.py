"""Which step would pay next: few-shot, documents, fine-tuning, or labels for the cache itself."""
