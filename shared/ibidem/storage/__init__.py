"""The truth: everything that is kept, in SQL. The only code that imports SQLAlchemy."""
