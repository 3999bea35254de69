"""Faults end to end: a whole run against a real PostgreSQL and a real server that misbehaves."""
