"""What the log is worth to a real model: Gemma 3 with 270 million parameters, on the processor."""
