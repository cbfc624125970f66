"""A page to draw on: one example of each of a few characters, then a new one, and which of them it is."""
