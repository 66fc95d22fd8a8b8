"""`nni.retiarii.experiment`."""
