"""What a run will take, before it: memory, time, and what would make it fit."""
