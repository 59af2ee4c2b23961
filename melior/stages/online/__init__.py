"""Rounds of learning from one's own answers: propose, choose, judge, and what a round leaves."""
