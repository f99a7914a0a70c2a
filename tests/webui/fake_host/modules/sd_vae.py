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
