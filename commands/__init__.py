"""The commands that cli.py is made of."""
