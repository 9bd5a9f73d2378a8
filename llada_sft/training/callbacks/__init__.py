"""What happens between steps: checkpoints, progress, ownership of signals."""
