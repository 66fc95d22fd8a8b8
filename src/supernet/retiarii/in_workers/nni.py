"""What a process finds under the name `nni` that a script's own process has spawned, say to load data.

Such a process imports the script anew, on the same `sys.path`, but knows nothing of what was installed in the other.
"""

import supernet_retiarii

supernet_retiarii.load()

from supernet.retiarii.install import install  # noqa: E402
from supernet.retiarii.name_of_the_script import leave_name_to_script  # noqa: E402

install(over_real_nni=True)
leave_name_to_script()
