"""The sources file: read with the line of every mistake, and written where a feed is added to it."""
