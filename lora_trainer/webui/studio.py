"""What the tab works with, one per process: the host, the data folder, and the parts that keep them.

Made when the tab is first drawn, kept over "Reload UI" (the host runs scripts/ again, but this module stays). Each part is made when it is first
needed, so that one that cannot be made does not take the others with it.
"""

from __future__ import annotations

import threading

from lora_trainer.webui.data_folder import DataFolder
from lora_trainer.webui.host import Host, find


class Studio:
    def __init__(self, host: Host, data: DataFolder) -> None:
        self.host = host
        self.data = data


_only: list[Studio] = []
_making = threading.Lock()


def studio() -> Studio:
    """The process's studio. Raises whatever keeps it from being made."""
    with _making:
        if not _only:
            host = find()
            _only.append(Studio(host, DataFolder(host.data_folder())))
        return _only[0]
