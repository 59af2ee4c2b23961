"""Whatever says how good something is: each offers a Scorer or a Comparator."""
