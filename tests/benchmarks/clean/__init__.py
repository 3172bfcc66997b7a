"""How well what is no example, and what is personal, is found."""
