from __future__ import annotations

from pathlib import Path

from modules import paths, shared

vae_path = str(Path(paths.models_path, "VAE").absolute())
vae_dict: dict[str, str] = {}
base_vae = None
loaded_vae_file: str | None = None
checkpoint_info = None


def refresh_vae_list():
    vae_dict.clear()
    for folder in filter(None, [vae_path, shared.cmd_opts.vae_dir]):
        for path in sorted(Path(folder).rglob("*")) if Path(folder).is_dir() else []:
            if path.suffix.lower() in (".ckpt", ".pt", ".safetensors"):
                vae_dict[path.name] = str(path)


def get_loaded_vae_name():
    return None if loaded_vae_file is None else Path(loaded_vae_file).name


def reload_vae_weights(sd_model=None, vae_file=None):
    global loaded_vae_file
    name = shared.opts.sd_vae
    loaded_vae_file = vae_file or vae_dict.get(name)
    return sd_model
