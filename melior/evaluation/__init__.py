"""Was it worth it: accuracies, win rates, intervals and paired tests."""
