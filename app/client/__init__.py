"""A client of the server's API, and a load generator."""
