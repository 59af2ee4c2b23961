"""Ways to learn from comparisons: the options of each, and the method that they make."""
