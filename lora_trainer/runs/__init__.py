"""The run folder: the one thing that stands between the WebUI's process and the worker's.

    output_dir/
      config.yaml       what was asked, complete and resolved; running it again reproduces the run.
                        A caption job has a caption.yaml instead
      events.jsonl      one JSON object a line, appended by the worker alone             (events.py)
      requests/         stop, save, preview, pause, resume: consumed by the worker
          (requests.py)
      worker.json       pid, start time, heartbeat, versions; worker.lock: held while the worker
                        lives
      worker.log        everything the worker and its libraries printed
      ended.json        a failure the worker could not tell of (killed, crashed): noted by whoever
                        watched it, void as soon as a later event is there
      host.json         the process with which the worker is to end, if there is one
          begin.lock: held while a run is begun here
      checkpoints/      NAME-step00000100.safetensors: ready-to-use LoRA files
      state/            what an exact resume needs
      previews/  logs/  (pictures; TensorBoard)
      NAME.safetensors  pytorch_lora_weights.safetensors

state.py folds the events into one RunState. Standard library only.
"""
