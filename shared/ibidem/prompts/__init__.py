"""A prompt taken apart: the question, the documents, and the rest, which is compared exactly."""
