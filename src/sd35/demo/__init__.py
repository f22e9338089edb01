"""The bundled demo checkpoint: a small SD3.5 model trained from nothing, its judge, and how both were made."""
