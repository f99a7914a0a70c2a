"""The host executes this file at start and at every "Reload UI": it hangs the tab into the host's
callbacks.
"""

from modules import script_callbacks

from lora_trainer.webui import callbacks

script_callbacks.on_ui_tabs(callbacks.on_ui_tabs)
script_callbacks.on_ui_settings(callbacks.on_ui_settings)
script_callbacks.on_app_started(callbacks.on_app_started)
script_callbacks.on_script_unloaded(callbacks.on_script_unloaded)
