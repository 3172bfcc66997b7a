"""A cache is copied from one database to another, while both are in use: `ibidem copy`."""
