"""All SQL of the service, and the embedded server."""
