"""`nni.retiarii.nn`."""
