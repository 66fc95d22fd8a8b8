"""`nni.retiarii.nn`."""

from supernet.retiarii.absent import names_absent_from

__getattr__ = names_absent_from(__name__, "nni.retiarii.nn")
