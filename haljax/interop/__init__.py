"""haljax in other programs."""
