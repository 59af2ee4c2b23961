"""Reward models of every kind: trained by one stage, judged, and made to leave margins."""
