from __future__ import annotations

import sys

import launch

git_tag = launch.git_tag
python = sys.executable
index_url = ""
