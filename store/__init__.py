"""All SQL of the service, and the embedded server."""

from store.database import Database

__all__ = ["Database"]
