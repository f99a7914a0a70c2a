"""A host that paints: each image depends on prompt and seed, and on the bytes of each LoRA by its
strength.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time

from PIL import Image

from lora_trainer.checkpoint.header import read_header
from lora_trainer.hosts.base import GeneratedImage, GenerationCancelled, HostPaths, LoadedCheckpoint

TAG = re.compile(r"<lora:([^:>]+):([^>]+)>")


class PaintingHost:
    """Finds LoRAs by the stem of a file below its folder, as hosts do, and remembers what it was
    asked for.
    """

    kind = "a1111"

    def __init__(self, root):
        self.root = root
        self.requests = []
        self.seen = []
        self.refreshed = 0
        self.comments = ()
        self.matched = None
        self.fails: Exception | None = None
        self.blind = False
        self.gate: threading.Event | None = None
        self.checkpoint = root / "base.safetensors"

    def paths(self):
        return HostPaths(
            data=self.root, models=self.root / "models", lora_dir=self.root / "models" / "Lora"
        )

    def language(self):
        return ""

    def is_remote(self):
        return False

    def api_credentials(self):
        return {}

    def samplers(self):
        return ["Euler", "DPM++ 2M"]

    def schedulers(self):
        return ["Automatic", "Karras"]

    def font(self):
        return None

    def refresh_loras(self):
        self.refreshed += 1

    def loaded(self):
        return LoadedCheckpoint(
            title="base.safetensors [0123]", path=self.checkpoint, vae=None, clip_skip=1
        )

    def generate(self, request, *, progress=None, stop_asked=None):
        self.requests.append(request)
        progress(1, request.steps)
        while self.gate is not None and not self.gate.is_set():
            if stop_asked():
                raise GenerationCancelled("the image was cancelled")
            time.sleep(0.005)
        if self.fails:
            raise self.fails
        key = TAG.sub("", request.prompt).strip() + str(request.seed)
        for name, strength in TAG.findall(request.prompt):
            (path,) = self.paths().lora_dir.rglob(f"{name}.safetensors")
            self.seen.append((name, read_header(path).metadata["ss_output_name"]))
            if not self.blind:
                key += hashlib.sha256(path.read_bytes()[-4:]).hexdigest() + strength
        colour = tuple(hashlib.sha256(key.encode()).digest()[:3])
        comments = tuple(
            (
                comment.format(name=TAG.findall(request.prompt)[0][0])
                if TAG.findall(request.prompt)
                else comment
            )
            for comment in self.comments
        )
        matched = (
            {name: self.matched for name, _ in TAG.findall(request.prompt)}
            if self.matched is not None
            else None
        )
        return GeneratedImage(
            image=Image.new("RGB", (request.width, request.height), colour),
            infotext=f"{request.prompt}\nSteps: {request.steps}",
            comments=comments,
            matched_modules=matched,
        )
