"""The tests, by module and by kind."""
