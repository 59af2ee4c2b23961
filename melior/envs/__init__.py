"""Small worlds that answer an action."""
