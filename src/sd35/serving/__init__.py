"""Jobs over HTTP: what stands between a client and the pipeline."""
