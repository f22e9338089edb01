"""From a checkpoint to pictures. Start at `pipeline.py`; the loop is `sampling.py`, the network `mmdit.py`."""
