"""The commands that are not systems: data, sample, score, select, merge, report."""
