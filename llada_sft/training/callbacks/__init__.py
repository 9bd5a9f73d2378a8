"""What happens between steps: checkpoints, progress, counts of rows, ownership of signals."""
