"""The database: answers, their vectors and documents, and the logs. The only code that imports SQLAlchemy."""
