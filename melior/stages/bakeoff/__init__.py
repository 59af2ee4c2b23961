"""One cell of a comparison of objectives, and how all cells are examined."""
