"""The loop from an objective to a trained model, its checkpoints and the folder a run leaves."""
