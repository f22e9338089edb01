"""Pictures over HTTP, none of them lost. Start reading at `service.py`."""
