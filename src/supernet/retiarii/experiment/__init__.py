"""`nni.retiarii.experiment`."""

from supernet.retiarii.absent import names_absent_from

__getattr__ = names_absent_from(__name__, "nni.retiarii.experiment")
