"""From a checkpoint to pictures. Start reading at `pipeline.py`."""
