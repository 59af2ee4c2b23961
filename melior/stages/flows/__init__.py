"""Flows: learned towards outcomes without a task, and turned to any reward."""
