"""The bundled demo checkpoint: a small SD3.5 model trained from nothing, its judge, how both were made."""
