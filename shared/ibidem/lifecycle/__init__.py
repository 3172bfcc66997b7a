"""Which answers are kept, how long, and what is forgotten."""
