"""Self-examination: small checks of this machine and of its checkpoints, each with the command that mends."""
