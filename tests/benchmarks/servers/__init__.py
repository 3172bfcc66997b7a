"""Many processes on a database server."""
