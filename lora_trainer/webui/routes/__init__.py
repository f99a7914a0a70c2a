"""Every route of the tab, one file an area: importing this package fills http.ROUTES."""

from lora_trainer.webui.routes import captions as captions
from lora_trainer.webui.routes import datasets as datasets
from lora_trainer.webui.routes import forms as forms
from lora_trainer.webui.routes import home as home
from lora_trainer.webui.routes import modules as modules
from lora_trainer.webui.routes import runs as runs
from lora_trainer.webui.routes import tries as tries
